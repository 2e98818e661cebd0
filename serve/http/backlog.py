"""How much is waiting, counted in codes, and how long it will take: who is turned away, and until when."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from panoserve.serve.http.errors import ApiError, queue_full

RATE_WINDOW = 30.0  # seconds of drawing that the rate is measured over
UNKNOWN_WAIT = 5  # seconds to come back after, while nothing has been drawn yet
MAX_WAIT = 120  # seconds; clients obey no more (openai-python)


class Ticket:
    """One accepted request's share of the backlog; give it back with `close`, however the request ends."""

    def __init__(self, backlog: Backlog, codes: int) -> None:
        self._backlog = backlog
        self._left = codes

    def drew(self, codes: int) -> None:
        """`codes` of the request have been drawn."""
        self._left -= codes
        self._backlog._drew(codes)

    def close(self) -> None:
        self._backlog.codes -= self._left
        self._left = 0


class Backlog:
    """Codes accepted and not drawn yet. For one event loop."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.codes = 0
        self._clock = clock
        self._drawn: deque[tuple[float, int]] = deque()  # (when, codes) of the last RATE_WINDOW seconds

    def accept(self, codes: int, param: str = "size") -> Ticket:
        """Raises ApiError: 400 about `param` if `codes` could never be accepted, 429 if not now."""
        if codes > self.limit:
            raise ApiError(
                400,
                f"the request asks for {codes} codes in all, but this server takes at most {self.limit} at a time; ask "
                "for a smaller size or a smaller n, or start the server with a larger --max-queue-codes",
                code="too_large",
                param=param,
            )
        if self.codes + codes > self.limit:
            wait = self.seconds_until(codes)
            raise queue_full(
                f"the queue is full: {self.codes} of {self.limit} codes are waiting to be drawn and the request asks "
                f"for {codes}; try again in {wait} s",
                wait,
            )
        self.codes += codes
        return Ticket(self, codes)

    def seconds_until(self, codes: int) -> int:
        """After how long `codes` will fit, at the present rate; whole seconds from 1 to MAX_WAIT."""
        rate = self.rate()
        if not rate:
            return UNKNOWN_WAIT
        return min(MAX_WAIT, max(1, math.ceil((self.codes + codes - self.limit) / rate)))

    def rate(self) -> float:
        """Codes drawn per second over the last RATE_WINDOW seconds; 0 while unknown."""
        now = self._clock()
        self._forget(now)
        if not self._drawn or now <= self._drawn[0][0]:
            return 0.0
        return sum(codes for _, codes in self._drawn) / (now - self._drawn[0][0])

    def _drew(self, codes: int) -> None:
        self.codes -= codes
        now = self._clock()
        self._forget(now)
        self._drawn.append((now, codes))

    def _forget(self, now: float) -> None:
        while self._drawn and self._drawn[0][0] <= now - RATE_WINDOW:
            self._drawn.popleft()
