"""Every error that panoserve raises on purpose.

PanoserveError
├── InvalidRequestError   one request is wrong: size, stride, label, prompt, sampling ...  (CLI exit code 2)
├── ModelFolderError      a model folder is missing, incomplete or inconsistent            (CLI exit code 2)
├── CheckpointError       an upstream checkpoint cannot be converted                       (CLI exit code 2)
├── EnvironmentProblem    a package or machine property stands in the way                  (CLI exit code 2)
├── CacheTooSmallError    the KV cache cannot hold what was asked for                      (CLI exit code 2)
└── PanoramaFailedError   the engine gave up on one panorama                               (CLI exit code 1)

A message says what was got, what was expected, and what to do.
"""

from __future__ import annotations


class PanoserveError(Exception):
    """Base of all errors meant for a user; its text is one complete message."""

    exit_code = 2


class InvalidRequestError(PanoserveError, ValueError):
    """A request that cannot be drawn as asked. `param` names the offending field, as in PanoramaRequest."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ModelFolderError(PanoserveError):
    """A model folder that cannot be served."""


class CheckpointError(PanoserveError):
    """An upstream checkpoint whose keys, shapes or container are not what its kind requires."""


class EnvironmentProblem(PanoserveError):
    """Something about this installation or machine that must be changed first."""


class CacheTooSmallError(PanoserveError):
    """The KV cache cannot hold the lanes that the smallest possible schedule needs."""


class PanoramaFailedError(PanoserveError):
    """The engine stopped drawing one panorama; others are unaffected."""

    exit_code = 1
