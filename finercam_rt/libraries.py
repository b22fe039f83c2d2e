"""Libraries that are not always there: missing and broken are two things, and the user is told which."""

from __future__ import annotations

import importlib
from typing import Any

from finercam_rt.errors import BackendError, one_line


def import_library(module: str, called: str, install: str) -> Any:
    """A module that a backend needs.

    Args:
        module: its name.
        called: what users call it.
        install: what to do where it is missing, such as "install onnxruntime-gpu".

    Raises:
        BackendError: it is not installed, or it is and does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise BackendError(f"{called} is not installed; {install}.") from None
        reason: Exception = error
    except (ImportError, OSError, RuntimeError) as error:  # the latter two of its shared libraries
        reason = error
    raise BackendError(f"{called} is installed and does not load ({one_line(reason)}); {install} anew.")
