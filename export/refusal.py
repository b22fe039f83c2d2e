"""What a stage did not foresee is a refusal in one sentence, not a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from finercam_rt.errors import ExportError, FinerCAMError
from finercam_rt.export.capture import first_line


@contextlib.contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Any exception of the block as an ExportError that says what was being done; ours pass as they are."""
    try:
        yield
    except FinerCAMError:
        raise
    except Exception as error:
        raise ExportError(
            f"{doing} failed ({type(error).__name__}: {first_line(error)}); choose another target layer, or report it."
        ) from error
