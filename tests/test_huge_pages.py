"""Huge pages: which regions are advised, and that the kernel follows."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from panoserve.kernels.huge_pages import HUGE_PAGE, Region, large_regions, use_huge_pages


def mapping(line: str, resident: int) -> str:
    """One entry of /proc/PID/smaps."""
    return f"{line}\nSize:              65536 kB\nKernelPageSize:        4 kB\nRss: {resident:>8} kB\nPss:     1 kB\n"


SMAPS = "".join(
    [
        mapping("00400000-08400000 r-xp 00000000 fe:00 1234                               /usr/bin/python", 900),
        mapping("10000000-14000000 rw-p 00000000 00:00 0                                  [heap]", 65536),
        mapping("7f0000100000-7f0004100000 rw-p 00000000 00:00 0 ", 8),
        mapping("7f0010000000-7f0010200000 rw-p 00000000 00:00 0 ", 2048),
        mapping("7f0020000000-7f0030000000 r--p 00000000 00:00 0 ", 0),
        mapping("7f0040000000-7f0050000000 rw-p 00000000 fe:00 99                         /data/cache", 5),
        mapping("7ffc00000000-7ffc10000000 rw-p 00000000 00:00 0                          [stack]", 7),
    ]
)


def test_large_anonymous_writable_regions_are_chosen_in_whole_huge_pages() -> None:
    assert large_regions(SMAPS) == [
        Region(0x10000000, 0x4000000, 65536 * 1024),
        Region(0x7F0000200000, 0x3E00000, 8 * 1024),
    ]


def _huge_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("AnonHugePages"))


def test_the_kernel_moves_a_buffer_to_huge_pages() -> None:
    offer = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offer.exists() or "[never]" in offer.read_text(encoding="ascii"):
        pytest.skip("this kernel offers no transparent huge pages")
    buffer = torch.ones(32 * HUGE_PAGE, dtype=torch.uint8)
    agreed = use_huge_pages()
    assert agreed >= 30 * HUGE_PAGE
    assert _huge_bytes() >= 16 * HUGE_PAGE  # best effort, but most of it on a machine with free memory
    assert int(buffer.sum()) == len(buffer)


def test_untouched_memory_stays_untouched() -> None:
    buffer = torch.empty(64 * HUGE_PAGE, dtype=torch.uint8)
    before = psutil.Process().memory_info().rss
    use_huge_pages()
    assert psutil.Process().memory_info().rss - before < 16 * HUGE_PAGE
    assert len(buffer) == 64 * HUGE_PAGE
