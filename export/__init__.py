"""The export stage: a PyTorch classifier and its Finer-CAM explanation become one ONNX graph. Needs PyTorch."""

from finercam_rt.export.embed_text import DEFAULT_TEMPLATES as DEFAULT_TEMPLATES
from finercam_rt.export.embed_text import embed_text as embed_text
from finercam_rt.export.export_model import export_model as export_model
from finercam_rt.export.models import LoadedModel as LoadedModel
from finercam_rt.export.models import ModelRequest as ModelRequest
from finercam_rt.export.models import load_model as load_model
from finercam_rt.export.models import load_state_dict as load_state_dict
from finercam_rt.export.prove import LayoutRequest as LayoutRequest
from finercam_rt.export.zero_shot import ZeroShot as ZeroShot

__all__ = [
    "DEFAULT_TEMPLATES",
    "LayoutRequest",
    "LoadedModel",
    "ModelRequest",
    "ZeroShot",
    "embed_text",
    "export_model",
    "load_model",
    "load_state_dict",
]
