"""An image classifier and its Finer-CAM explanation in one graph, run without PyTorch."""

from typing import TYPE_CHECKING

from finercam_rt import ops as ops
from finercam_rt.contrast import Contrast as Contrast
from finercam_rt.contrast import Rank as Rank
from finercam_rt.contrast import alpha_sweep as alpha_sweep
from finercam_rt.contrast import top_classes as top_classes
from finercam_rt.contrast import why_not as why_not
from finercam_rt.embeddings import ClassEmbeddings as ClassEmbeddings
from finercam_rt.engine import Engine as Engine
from finercam_rt.errors import BackendError as BackendError
from finercam_rt.errors import DeviceMemoryError as DeviceMemoryError
from finercam_rt.errors import EngineError as EngineError
from finercam_rt.errors import ExportError as ExportError
from finercam_rt.errors import FinerCAMError as FinerCAMError
from finercam_rt.errors import InputError as InputError
from finercam_rt.explanation import Explanation as Explanation
from finercam_rt.geometry import Geometry as Geometry
from finercam_rt.outputs import Outputs as Outputs
from finercam_rt.photographs import Batch as Batch
from finercam_rt.tail import Tail as Tail
from finercam_rt.video import frames as frames

__version__: str
"""Read when it is asked for: importlib.metadata, which knows it, is a tenth of the package's import."""

__all__ = [
    "BackendError",
    "Batch",
    "ClassEmbeddings",
    "Contrast",
    "DeviceMemoryError",
    "Engine",
    "EngineError",
    "Explanation",
    "ExportError",
    "FinerCAMError",
    "Geometry",
    "InputError",
    "Outputs",
    "Rank",
    "Tail",
    "__version__",
    "alpha_sweep",
    "frames",
    "ops",
    "top_classes",
    "why_not",
]


if not TYPE_CHECKING:  # to a type checker any name would be an attribute

    def __getattr__(name: str) -> str:
        """The version."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("finercam-rt")

    def __dir__() -> list[str]:
        """All names, the version's among them."""
        return sorted({*globals(), "__version__"})
