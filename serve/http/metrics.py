"""Our figures on vLLM's /metrics page (prometheus), beside vLLM's own, whose requests are our lanes."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

OUTCOMES = ("finished", "aborted", "failed")
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """Use `metrics()`: prometheus allows each name once per process."""

    def __init__(self) -> None:
        self.queued = Gauge("panoserve_panoramas_queued", "Panoramas accepted of which no row is complete yet")
        self.running = Gauge("panoserve_panoramas_running", "Panoramas of which some rows are complete")
        self.ended = Counter("panoserve_panoramas", "Panoramas that have ended, by outcome", ["outcome"])
        self.rejected = Counter("panoserve_rejected_requests", "Requests answered 429 because the queue was full")
        self.waiting_codes = Gauge("panoserve_waiting_codes", "Codes accepted and not drawn yet")
        self.max_codes = Gauge("panoserve_max_queue_codes", "Most codes that may wait before requests are turned away")
        self.codes = Counter("panoserve_codes_drawn", "Codes drawn, in complete rows")
        self.forward_tokens = Counter("panoserve_forward_tokens", "Model inputs of finished panoramas")
        self.copied_slots = Counter("panoserve_kv_slots_copied", "KV slots copied between lanes of finished panoramas")
        self.lanes = Counter("panoserve_lanes", "Lanes of finished panoramas")
        self.first_row_seconds = Histogram(
            "panoserve_first_row_seconds", "From acceptance to the first complete row", buckets=SECONDS
        )
        self.panorama_seconds = Histogram(
            "panoserve_panorama_seconds", "From acceptance to the encoded picture", buckets=SECONDS
        )
        self.decode_seconds = Histogram(
            "panoserve_decode_seconds", "Decoding and encoding of one picture, previews too", buckets=SECONDS
        )
        for outcome in OUTCOMES:
            self.ended.labels(outcome)  # so that a zero is reported as such


@cache
def metrics() -> Metrics:
    return Metrics()
