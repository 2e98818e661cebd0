"""One line of JSON for each thing that happens: `{"time": ..., "event": "panorama", "request": ..., ...}` on stderr."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("panoserve.http")


class JsonLines(logging.Formatter):
    """Records of `log_event` as one line of JSON each."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields = getattr(record, "fields", {})
        return json.dumps({"time": time, "level": record.levelname, "event": record.getMessage(), **fields})


def log_event(event: str, level: int = logging.INFO, /, **fields: Any) -> None:
    """Log an event with its facts; facts that are None are left out."""
    LOGGER.log(level, event, extra={"fields": {name: value for name, value in fields.items() if value is not None}})


def set_up_logging() -> None:
    """Send our events to stderr, unless whoever embeds us has arranged for them already."""
    if not LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)
