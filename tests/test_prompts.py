"""The prompt set of the benchmarks: as large as promised, without duplicates, and what its sources say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "prompts"
TEXT = (FOLDER / "panoramas.jsonl").read_text(encoding="utf-8")
ROWS = [json.loads(line) for line in TEXT.splitlines()]


def test_the_set_has_a_thousand_prompts_over_its_themes() -> None:
    assert len(ROWS) == len({row["prompt"] for row in ROWS}) == len({row["id"] for row in ROWS}) == 1000
    assert len({row["theme"] for row in ROWS}) == 25
    assert len({(row["theme"], row["sub_theme"]) for row in ROWS}) == 125


def test_prompts_are_whole_sentences_without_stray_marks() -> None:
    for row in ROWS:
        prompt = row["prompt"]
        assert prompt[0].isupper() and prompt.endswith(".") and 60 <= len(prompt) <= 250, prompt
        assert not any(mark in prompt for mark in ("{", "}", "  ", " ,", "None")), prompt


def test_the_file_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "make.py"))
    assert script["text_of"](script["prompts"]()) == TEXT
