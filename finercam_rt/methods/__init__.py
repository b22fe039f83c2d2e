"""Methods that look at a classifier from outside, or at one layer: Score-CAM, RISE, MI-CAM, MetaCAM, ..."""

from finercam_rt.methods.ablation import AblationCam as AblationCam
from finercam_rt.methods.channels import SubsetError as SubsetError
from finercam_rt.methods.channels import subset_error as subset_error
from finercam_rt.methods.engine_source import EngineSource as EngineSource
from finercam_rt.methods.meta import MetaCam as MetaCam
from finercam_rt.methods.meta import ResidualEffects as ResidualEffects
from finercam_rt.methods.mutual_information import MiCam as MiCam
from finercam_rt.methods.mutual_information import MiGrad as MiGrad
from finercam_rt.methods.protocol import Asked as Asked
from finercam_rt.methods.protocol import Maps as Maps
from finercam_rt.methods.protocol import MapSource as MapSource
from finercam_rt.methods.rise import Rise as Rise
from finercam_rt.methods.score import ScoreCam as ScoreCam
