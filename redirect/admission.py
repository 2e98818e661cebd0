"""Which lanes may hold KV: a reservation for every panorama under way, so that none can ever block another for good.

A lane that waits for its parent keeps its blocks and is never preempted by vLLM, so lanes must not be let in on hope. A
panorama starts only when the lanes it needs to finish on its own, one after another in the plan's order, fit beside
everybody else's (`Plan.min_resident`); beyond that, lanes take what nobody has reserved. A lane that is admitted
*ahead* of its turn in that order (in a canvas of two directions, the next column may start before the row below does)
never takes a reserved place, because it may have to wait for lanes that are still to be admitted.

Beside that, which is about safety, a panorama starts only when there is room for as many lanes as it holds when nobody
stands in its way (`Plan.mean_resident`), or if nobody else is under way. Panoramas that share too few places hold lanes
that wait for each other, and all end late; one after another they end as early as they can. No panorama counts for more
than half of the places in this, so that a large one does not keep everybody out. Pure Python.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Holding:
    """One panorama's share. `lane_blocks` KV blocks hold one lane's whole window."""

    lane_blocks: int
    guaranteed: int  # lanes that may always be held at once
    remaining: int  # lanes not released yet
    usual: int  # lanes that it holds when nobody stands in its way, as far as that is others' concern
    held: int = 0
    ahead: int = 0  # of those held: how many come, in the plan's order, behind one that is not admitted yet

    @property
    def reserved(self) -> int:
        """Lanes still reserved on top of those held."""
        return max(0, min(self.guaranteed, self.remaining - self.ahead) - (self.held - self.ahead))

    @property
    def share(self) -> int:
        """Lanes that those who would like to start leave to it."""
        return max(self.held + self.reserved, min(self.usual, self.remaining))


class Admission:
    """Counts blocks and seats (rows of vLLM's batch) of admitted lanes; knows nothing of blocks' contents."""

    def __init__(self, blocks: int, seats: int) -> None:
        self.blocks = blocks
        self.seats = seats
        self.holdings: dict[str, Holding] = {}

    def can_ever_hold(self, lane_blocks: int, lanes: int) -> bool:
        return lanes <= self.seats and lanes * lane_blocks <= self.blocks

    def _holds(self, lanes: Callable[[Holding], int]) -> bool:
        """Whether so many lanes of every panorama fit together."""
        counts = [(lanes(holding), holding.lane_blocks) for holding in self.holdings.values()]
        return sum(n for n, _ in counts) <= self.seats and sum(n * blocks for n, blocks in counts) <= self.blocks

    def _fits(self) -> bool:
        """Whether everything held and reserved now fits."""
        return self._holds(lambda holding: holding.held + holding.reserved)

    def begin(self, panorama: str, lane_blocks: int, guaranteed: int, lanes: int, usual: int) -> bool:
        """Reserve what `panorama` needs to finish; False, and nothing changed, if it must wait.

        usual: how many of its lanes hold KV at once when nobody stands in its way.
        """
        half = min(self.seats, self.blocks // lane_blocks) // 2
        self.holdings[panorama] = Holding(lane_blocks, guaranteed, lanes, min(usual, half))
        if self._fits() and (len(self.holdings) == 1 or self._holds(lambda holding: holding.share)):
            return True
        del self.holdings[panorama]
        return False

    def admit(self, panorama: str, ahead: int = 0) -> bool:
        """Let one more lane hold KV; False, and nothing changed, if reservations stand in the way.

        `ahead` is how many of the panorama's lanes will then be held ahead of their turn, this one included.
        """
        holding = self.holdings[panorama]
        before = holding.ahead
        holding.held, holding.ahead = holding.held + 1, ahead
        if self._fits():
            return True
        holding.held, holding.ahead = holding.held - 1, before
        return False

    def release(self, panorama: str, ahead: int = 0) -> None:
        """A lane gave its KV back; `ahead` as in `admit`."""
        holding = self.holdings[panorama]
        holding.held -= 1
        holding.remaining -= 1
        holding.ahead = ahead

    def end(self, panorama: str) -> None:
        """The panorama is over, however it ended."""
        self.holdings.pop(panorama, None)
