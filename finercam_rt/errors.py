"""The errors that a user can act on; the message of each is one sentence that says what is wrong and what to do."""

from __future__ import annotations


def one_line(error: BaseException | str) -> str:
    """What it says, for a sentence of ours: on one line and without its full stop; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


class FinerCAMError(Exception):
    """Base of every error that finercam_rt raises on purpose; the command line prints it and exits with 2."""


class InputError(FinerCAMError, ValueError):
    """An argument, image, class, shape or dtype that cannot be used."""


class WrongTypeError(InputError, TypeError):
    """An argument of the wrong type, for callers who expect the TypeError of the library that `compat` stands for."""


class EngineError(FinerCAMError):
    """A file that is not an engine of ours, is damaged, or that this version or machine cannot run."""


class BackendError(FinerCAMError):
    """A runtime or a device that is missing or failed."""


class DeviceMemoryError(BackendError, MemoryError):
    """A device, or the host's memory for copies to it, has too little left; `bytes` were asked for."""

    def __init__(self, message: str, size: int) -> None:
        """With its sentence."""
        super().__init__(message)
        self.bytes = size


class ExportError(FinerCAMError):
    """A model that cannot be compiled, or whose compiled form does not equal it."""
