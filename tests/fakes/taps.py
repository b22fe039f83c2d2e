"""The toy engine with head "taps"."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from finercam_rt.manifest import TapsInfo
from finercam_rt.onnx_metadata import read_manifest


def with_taps(toy: Any, *, gradients: bool, carried: bool = False) -> Path:
    """An engine that gives the activations and the channel weights, or gradients of which these are the means.

    Its maps are those of the toy. carried: whether it gives the pooled activations as well.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(toy.path)
    graph, several = model.graph, toy.contrasts > 1
    rows, columns = (size // toy.kernel.shape[-1] for size in toy.size)
    pattern = np.random.default_rng(0).normal(size=(1, 1, rows, columns)).astype(np.float32)
    pattern += 1 - pattern.mean()  # a gradient is the weight times this, whose mean is 1
    graph.initializer.append(numpy_helper.from_array(pattern, "pattern"))
    name = "gradients" if gradients else "channel_weights"
    for p in range(toy.contrasts):
        source = f"channel_weights.{p}"
        if gradients:
            graph.node.append(helper.make_node("Mul", [f"channel_weights_4d.{p}", "pattern"], [f"gradients.{p}"]))
            source = f"gradients.{p}"
        if several:
            graph.node.append(helper.make_node("Unsqueeze", [source, "axis1"], [f"{source}.row"]))
    if several:
        graph.node.append(helper.make_node("Concat", [f"{name}.{p}.row" for p in range(toy.contrasts)], [name], axis=1))
    else:
        graph.node.append(helper.make_node("Identity", [f"{name}.0"], [name]))
    channels = toy.kernel.shape[0]
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    count = batch.dim_value if batch.HasField("dim_value") else batch.dim_param
    shapes = {
        "activations": [count, channels, rows, columns],
        name: [count, *([toy.contrasts] if several else []), channels, *([rows, columns] if gradients else [])],
        **({"carried_0": [count, channels]} if carried else {}),
    }
    if carried:
        graph.node.append(helper.make_node("Identity", ["pooled"], ["carried_0"]))
    kept = [value for value in graph.output if value.name != "saliency_map"]
    del graph.output[:]
    graph.output.extend(kept)
    for output, shape in shapes.items():
        graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, shape))
    taps = TapsInfo(channels, gradients, ((channels,),) if carried else (), "2" * 64 if carried else None)
    manifest = dataclasses.replace(read_manifest(toy.path), head="taps", taps=taps)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "finercam")
    entry.value = manifest.to_json()
    path = toy.path.with_name(f"{toy.path.stem}-{name}.onnx")
    onnx.save(model, path)
    return path
