"""What `finercam export` says of the engine that it wrote."""

from __future__ import annotations

from pathlib import Path

from finercam_rt.manifest import GREY, RGB, Manifest

_SAID = ("classifier", "layer")
"""What the lines of the manifest's passes are about that a user should read."""


def summary(manifest: Manifest, path: Path, seconds: float) -> str:
    """What was made, in a few lines."""
    measured = manifest.verification
    layers = ", ".join(layer.name for layer in manifest.layers)
    several = "" if manifest.contrasts == 1 else f" for each of {manifest.contrasts} contrasts"
    classes = "" if manifest.zero_shot is None else " --class-embeddings FILE, made by `finercam embed-text`"
    return (
        f"{path}: {manifest.model.name}, {path.stat().st_size / 1e6:.1f} MB, in {seconds:.1f} s\n"
        f"  target layer {layers}, {manifest.layers[0].layout}, map {manifest.grid[0]} x {manifest.grid[1]}; "
        f"{manifest.method}, objective {manifest.objective}, {manifest.references} references{several}\n"
        f"{_images(manifest)}{_taps(manifest)}{_adapted(manifest)}"
        f"  verified against {measured['against']}: map error {measured['map_relative_l2']:.1e}, "
        f"logit error {measured['logits_relative_max']:.1e} (relative, {measured['images']} images)\n"
        f"{_rounding(manifest)}{_agreement(manifest)}{_checked(manifest)}"
        f"next: finercam explain {path} PHOTOGRAPHS -o OUT/{classes}"
    )


def _rounding(manifest: Manifest) -> str:
    """How far rounding moves the model's own map, in a line; nothing where nobody had to ask."""
    found = manifest.verification.get("rounding_of_pytorch")
    return "" if found is None else f"  rounding in float32 moves PyTorch's own map by {found['maps']:.1e}\n"


def _images(manifest: Manifest) -> str:
    """What is taken for an image, in a line; nothing where that is a photograph in RGB."""
    channels = manifest.input.channels
    if channels == RGB:
        return ""
    if channels == GREY:
        return "  images of one channel; photographs are made grey\n"
    return f"  images of {channels} channels, given as arrays (H,W,{channels}) or .npy files of them\n"


def _taps(manifest: Manifest) -> str:
    """What the graph gives in place of the map, in a line; nothing for head "graph"."""
    if manifest.taps is None:
        return ""
    return f"  head taps: activations and {manifest.taps.second}; draws {', '.join(manifest.taps.methods)}\n"


def _adapted(manifest: Manifest) -> str:
    """What of the model was not taken as it is, and what there is to say of the layer, a line each."""
    lines = [line.partition(": ") for line in manifest.passes]
    said = [line if about == "classifier" else f"target layer: {line}" for about, _, line in lines if about in _SAID]
    return "".join(f"  {line}\n" for line in said)


def _agreement(manifest: Manifest) -> str:
    """How a reduced precision agrees with fp32, in a line; nothing for fp32."""
    if manifest.precision == "fp32":
        return ""
    measured = manifest.verification["precision"]
    below = f"; BELOW THE THRESHOLD: {', '.join(low)}" if (low := measured.get("below_threshold")) else ""
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'none' if measured[name] is None else f'{measured[name]:.4f}'}"
        for name in ("cosine", "spearman", "top_overlap", "class_agreement")
    )
    return f"  {manifest.precision} against fp32 on {measured['images']}: {figures}{below}\n"


def _checked(manifest: Manifest) -> str:
    """What TensorRT made of it, in a line; nothing where it was not asked."""
    found = manifest.verification.get("tensorrt")
    if found is None:
        return ""
    kernels = (
        ""
        if found["kernels"] is None
        else (f", {found['kernels']} kernels, {found['kernels_behind_logits']} of them for the explanation alone")
    )
    return f"  {found['runtime']} builds it: {found['plan_bytes'] / 1e6:.1f} MB, {found['seconds']:.1f} s{kernels}\n"
