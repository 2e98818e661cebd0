"""Which lanes may hold KV: a reservation for every panorama under way, so that none can ever block another for good.

A lane that waits for its parent keeps its blocks and is never preempted by vLLM, so lanes must not be let in on hope. A
panorama starts only when the lanes it needs to finish on its own, one after another in the plan's order, fit beside
everybody else's (`Plan.min_resident`); beyond that, lanes take what nobody has reserved. A lane that is admitted
*ahead* of its turn in that order (in a canvas of two directions, the next column may start before the row below does)
never takes a reserved place, because it may have to wait for lanes that are still to be admitted. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Holding:
    """One panorama's share. `lane_blocks` KV blocks hold one lane's whole window."""

    lane_blocks: int
    guaranteed: int  # lanes that may always be held at once
    remaining: int  # lanes not released yet
    held: int = 0
    ahead: int = 0  # of those held: how many come, in the plan's order, behind one that is not admitted yet

    @property
    def reserved(self) -> int:
        """Lanes still reserved on top of those held."""
        return max(0, min(self.guaranteed, self.remaining - self.ahead) - (self.held - self.ahead))


class Admission:
    """Counts blocks and seats (rows of vLLM's batch) of admitted lanes; knows nothing of blocks' contents."""

    def __init__(self, blocks: int, seats: int) -> None:
        self.blocks = blocks
        self.seats = seats
        self.holdings: dict[str, Holding] = {}

    def can_ever_hold(self, lane_blocks: int, lanes: int) -> bool:
        return lanes <= self.seats and lanes * lane_blocks <= self.blocks

    def _fits(self) -> bool:
        """Whether everything held and reserved now fits."""
        blocks = sum((h.held + h.reserved) * h.lane_blocks for h in self.holdings.values())
        seats = sum(h.held + h.reserved for h in self.holdings.values())
        return blocks <= self.blocks and seats <= self.seats

    def begin(self, panorama: str, lane_blocks: int, guaranteed: int, lanes: int) -> bool:
        """Reserve what `panorama` needs to finish; False, and nothing changed, if it must wait."""
        self.holdings[panorama] = Holding(lane_blocks, guaranteed, lanes)
        if self._fits():
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
