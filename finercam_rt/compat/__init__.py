"""A drop-in for pytorch-grad-cam: its classes and signatures over compiled engines. Needs PyTorch and the export.

    from finercam_rt.compat import FinerCAM

    with FinerCAM(model=model, target_layers=[model.layer4]) as cam:
        saliency_map = cam(input_tensor=images, alpha=1.0)  # (N,H,W) float32 in [0, 1]

The first call compiles the model for that size of images, which takes some seconds; later ones run the engine, also
from another object. `cache` holds the engines while their models are unchanged. torch-cam's form is in
`finercam_rt.compat.torchcam`.
"""

try:
    from finercam_rt.compat.explainer import CACHE as cache  # noqa: N811
    from finercam_rt.compat.grad_cam import FEM as FEM
    from finercam_rt.compat.grad_cam import EigenCAM as EigenCAM
    from finercam_rt.compat.grad_cam import EigenGradCAM as EigenGradCAM
    from finercam_rt.compat.grad_cam import FinerCAM as FinerCAM
    from finercam_rt.compat.grad_cam import GradCAM as GradCAM
    from finercam_rt.compat.grad_cam import GradCAMElementWise as GradCAMElementWise
    from finercam_rt.compat.grad_cam import GradCAMPlusPlus as GradCAMPlusPlus
    from finercam_rt.compat.grad_cam import HiResCAM as HiResCAM
    from finercam_rt.compat.grad_cam import LayerCAM as LayerCAM
    from finercam_rt.compat.grad_cam import XGradCAM as XGradCAM
    from finercam_rt.compat.targets import ClassifierOutputTarget as ClassifierOutputTarget
    from finercam_rt.compat.targets import FinerWeightedTarget as FinerWeightedTarget
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("torch", "onnx", "onnxscript"):
        raise
    raise ImportError(
        f'finercam_rt.compat compiles PyTorch models and needs {error.name}; run `pip install "finercam-rt[export]"`.'
    ) from error

__all__ = [
    "FEM",
    "ClassifierOutputTarget",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FinerWeightedTarget",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
    "cache",
]
