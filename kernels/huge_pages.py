"""Put large buffers of this process on huge pages (Linux).

Weights and KV blocks are read whole at every step, a KV block in pieces of a few kilobytes from all over the cache. On
pages of 4 KiB the processor spends part of that time looking addresses up (figures in docs/log.md). PyTorch can ask for
huge pages itself (THP_MEM_ALLOC_ENABLE), but the packed weights are oneDNN's own memory and the variable must be set
before anything is allocated; so the memory that is mapped after loading is advised as a whole instead, once.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

HUGE_PAGE = 2**21
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; collapse since Linux 6.1
_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<kind>rw.p 00000000 00:00 0 *(?:\[heap\])?$)?.*\n"
    r"(?:(?!Rss:)\w+:.*\n)*Rss: +(?P<resident>\d+) kB",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Region:
    """Anonymous writable memory, cut to whole huge pages."""

    start: int
    length: int  # bytes
    resident: int  # bytes of the uncut region that are in memory


def large_regions(smaps: str, least: int = 8 * HUGE_PAGE) -> list[Region]:
    """The anonymous writable regions of at least `least` bytes in the text of /proc/PID/smaps."""
    regions = []
    for found in _MAPPING.finditer(smaps):
        if found["kind"]:
            start = -(-int(found["start"], 16) // HUGE_PAGE) * HUGE_PAGE
            length = int(found["end"], 16) // HUGE_PAGE * HUGE_PAGE - start
            if length >= least:
                regions.append(Region(start, length, 1024 * int(found["resident"])))
    return regions


def use_huge_pages() -> int:
    """Advise every large anonymous region of this process; returns the bytes that the kernel agreed to.

    Changes speed only. Nothing happens, and 0 comes back, where there is no Linux or it does not offer huge pages.
    """
    if not _SMAPS.exists():
        return 0
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    agreed = 0
    for region in large_regions(_SMAPS.read_text(encoding="utf-8", errors="replace")):
        if madvise(region.start, region.length, _MADV_HUGEPAGE) == 0:
            agreed += region.length
            if region.resident >= region.length // 2:  # collapsing an untouched region would fill it with memory
                madvise(region.start, region.length, _MADV_COLLAPSE)  # best effort: memory may be too fragmented
    return agreed
