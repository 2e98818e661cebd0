"""panoserve: serve autoregressive image models, and panoramas of any size, on vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from panoserve.version import __version__

if TYPE_CHECKING:
    from panoserve.serve.engine import Engine
    from panoserve.serve.request import Panorama, PanoramaRequest

__all__ = ["Engine", "Panorama", "PanoramaRequest", "__version__"]

_HOMES = {
    "Engine": "panoserve.serve.engine",
    "Panorama": "panoserve.serve.request",
    "PanoramaRequest": "panoserve.serve.request",
}


def __getattr__(name: str) -> Any:
    """Import the public classes on first use, so that `import panoserve` costs no torch and no vLLM."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'panoserve' has no attribute {name!r}; public names: {', '.join(__all__)}")
