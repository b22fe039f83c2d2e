"""PROGRAM.pt2, what torch.export.save wrote; and what other files are, for the sentence that refuses them."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import torch

from finercam_rt.errors import ExportError
from finercam_rt.export.channels import counted
from finercam_rt.export.models.request import LoadedModel, ModelRequest
from finercam_rt.export.programs import image_channels, image_size, module_of_program
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line
from finercam_rt.manifest import IMAGENET_INPUT


def load_program(path: Path, request: ModelRequest) -> LoadedModel:
    """A program of torch.export; like a pickle it can hold code, so it should come from a source that one trusts.

    Raises:
        ExportError: no such file, no such program, or options that it has no use for.
    """
    if not path.is_file():
        raise ExportError(f"{path}: no such file.")
    if path.suffix != ".pt2" or _is_torchscript(_members(path)):
        raise ExportError(f"{path}: {_described(path)}")
    for given, option in (
        (request.checkpoint is not None, "--checkpoint"),
        (request.pretrained, "--pretrained"),
        (request.random_weights, "--random-weights"),
        (request.num_classes is not None, "--num-classes"),
        (bool(request.arguments), "--model-arg"),
        (request.linear_head is not None, "--linear-head"),
    ):
        if given:
            raise ExportError(f"{path}: an exported program is complete; leave {option} out.")
    members = _members(path)
    if any("aotinductor" in name for name in members):
        raise ExportError(f"{path}: holds compiled code of AOTInductor; give what torch.export.save wrote.")
    try:
        with quiet():
            program = torch.export.load(path)
    except Exception as error:
        raise ExportError(
            f"{path}: no program that this PyTorch {torch.__version__} can load ({first_line(error)}); write it with "
            "torch.export.save."
        ) from error
    fixed = image_size(program)
    if fixed is not None and request.input_size not in (None, fixed):
        raise ExportError(
            f"{path}: was exported for images of {fixed[0]}x{fixed[1]}; leave --input-size out, or export it again."
        )
    channels = image_channels(program)
    if request.channels not in (None, channels):
        raise ExportError(f"{path}: was exported for images of {counted(channels)}; leave --channels out.")
    size = fixed or request.input_size or IMAGENET_INPUT.size
    return LoadedModel(module_of_program(program), path.name, replace(IMAGENET_INPUT, size=size), channels=channels)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _is_torchscript(names: list[str]) -> bool:
    return any(name.endswith("constants.pkl") for name in names) and any("/code/" in name for name in names)


def _described(path: Path) -> str:
    """What a file is that is no model specification, and what to give in its place."""
    names = _members(path)
    if path.suffix == ".onnx":
        return "is an ONNX file, which has no layers to explain at; give the PyTorch model that it was made of."
    if _is_torchscript(names):
        return "is TorchScript, whose layers cannot be looked into; give the model that it was made of."
    if path.suffix in (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".tar"):
        return f"a checkpoint says no architecture; give the model, such as timm:NAME, and --checkpoint {path}."
    return "is no model; give timm:NAME, torchvision:NAME, hf:NAME, py:PACKAGE.MODULE:CALLABLE or a .pt2 file."
