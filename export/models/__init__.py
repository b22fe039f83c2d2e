"""Model specifications: what a user writes on the command line becomes a model, its input and its class names."""

from finercam_rt.export.models.load import load_model as load_model
from finercam_rt.export.models.request import LoadedModel as LoadedModel
from finercam_rt.export.models.request import ModelRequest as ModelRequest
from finercam_rt.export.models.weights import load_state_dict as load_state_dict

__all__ = ["LoadedModel", "ModelRequest", "load_model", "load_state_dict"]
