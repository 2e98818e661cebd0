"""Pictures that a client asked for as `url`: kept in memory, bounded in bytes, gone after a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """An encoded picture and its media type."""

    content: bytes
    media_type: str
    expires: float  # on the store's clock


class PictureStore:
    """Pictures by an unguessable name, which is all that is needed to fetch one. For one event loop."""

    def __init__(self, *, max_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.seconds = seconds
        self._clock = clock
        self._pictures: OrderedDict[str, StoredPicture] = OrderedDict()  # oldest first
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, content: bytes, media_type: str) -> str:
        """Keep a picture and return its name. Older ones go to make room; a picture always fits by itself."""
        self._expire()
        while self._pictures and self.bytes + len(content) > self.max_bytes:
            self._drop_oldest()
        name = secrets.token_urlsafe(24)
        self._pictures[name] = StoredPicture(content, media_type, self._clock() + self.seconds)
        self.bytes += len(content)
        return name

    def get(self, name: str) -> StoredPicture | None:
        self._expire()
        return self._pictures.get(name)

    def _expire(self) -> None:
        now = self._clock()
        while self._pictures and next(iter(self._pictures.values())).expires <= now:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, picture = self._pictures.popitem(last=False)
        self.bytes -= len(picture.content)
