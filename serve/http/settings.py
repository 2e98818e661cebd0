"""What the HTTP front can be told when it starts; the engine's own settings are in serve/settings.py."""

from __future__ import annotations

from dataclasses import dataclass

from panoserve.errors import EnvironmentProblem

MAX_BODY_BYTES = 1 << 20  # 32,000 characters of prompt fit, however they are escaped
MAX_FORM_BYTES = 64 << 20  # of an edit: a picture and its mask
MAX_EDIT_PIXELS = 16_000_000  # of a picture to be edited; a small file can claim any size
MAX_PROMPT_CHARACTERS = 32_000  # OpenAI's limit
MAX_PROMPTS = 100  # along one panorama
MAX_REQUEST_CROPS = 4096  # of one request: each costs the planner some 40 KiB and half a millisecond
MAX_IMAGES = 10  # of one request; OpenAI's limit
STALL_SECONDS = 120.0  # after which a client that takes nothing of its stream is taken for gone
KEEP_ALIVE_SECONDS = 15.0  # between comments on an idle stream, below the usual read time-outs of proxies


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Defaults of `panoserve serve`, and of a server that vLLM's own command started."""

    context: str = "reuse"  # how crops get their given codes, where a request does not say
    max_queue_codes: int = 1 << 18  # accepted and not drawn yet, over all requests; beyond it the answer is 429
    url_minutes: float = 60.0  # how long a picture asked for as `url` can be fetched
    url_mib: float = 256.0  # memory for such pictures; the oldest go first
    decode_memory_gib: float = 1.0  # activations kept while pictures are decoded

    def __post_init__(self) -> None:
        for name in ("max_queue_codes", "url_minutes", "url_mib", "decode_memory_gib"):
            if not getattr(self, name) > 0:
                flag = "--" + name.replace("_", "-")
                raise EnvironmentProblem(f"{flag} is {getattr(self, name)}, but must be above 0")
