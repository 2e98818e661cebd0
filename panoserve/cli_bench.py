"""`panoserve bench report`: docs/benchmarks.md made again from the results of benchmarks."""

from __future__ import annotations

import argparse
from pathlib import Path

from panoserve.errors import InvalidRequestError

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = CHECKOUT / "benchmarks" / "results", CHECKOUT / "docs" / "benchmarks.md"
ABOUT = "write the tables and charts of docs/benchmarks.md from the results of benchmarks"
DETAIL = (
    "Benchmarks are run by `python -m panoserve.benchmarks.NAME`, whose --json FILE appends the result to a file. What "
    "is not between the page's markers stays as it is."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        default=RESULTS,
        help="folder with .jsonl files (default: the checkout's)",
    )
    parser.add_argument("--page", type=Path, metavar="MD", default=PAGE, help="the page (default: the checkout's)")
    parser.add_argument("--no-charts", action="store_true", help="leave the charts as they are (no matplotlib needed)")


def report(arguments: argparse.Namespace) -> int:
    """Rewrite the page; prints the files written."""
    from panoserve.benchmarks.report import write_report
    from panoserve.benchmarks.results import read_results

    if not arguments.page.is_file():
        raise InvalidRequestError(
            f"there is no page {arguments.page}; name one that holds the report's markers: --page"
        )
    results = read_results(arguments.results)
    for path in write_report(arguments.page, results, draw_charts=not arguments.no_charts):
        print(path)
    return 0
