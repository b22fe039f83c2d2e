"""Stage 6: trunk and explained tail become one ONNX graph with the manifest in its metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from finercam_rt.errors import ExportError
from finercam_rt.export.assemble import Assembly
from finercam_rt.export.quiet import quiet
from finercam_rt.export.refusal import first_line, refusing
from finercam_rt.export.registry import one_registry
from finercam_rt.export.rewriter import fake_mode
from finercam_rt.export.simplify import simplify
from finercam_rt.export.sources import keep_sources
from finercam_rt.manifest import EMBEDDINGS, METADATA_KEY, SOURCE_KEY, Manifest
from finercam_rt.tail_manifest import TAIL_KEY, TailManifest

if TYPE_CHECKING:
    import onnx_ir

OPSETS = (18, 19, 20)
MOST_BYTES = 2**31
"""Of an ONNX file: protobuf writes no more, and not this many."""
TRUNK, TAIL = "trunk/", "tail/"
"""What the names of the nodes begin with: before and behind the target layer's output."""


def emit(trunk: fx.GraphModule, tail: fx.GraphModule, manifest: Manifest, *, opset: int) -> onnx_ir.Model:
    """One ONNX model with the inputs and outputs of the manifest; its dynamic axes are `batch` and `classes`.

    Args:
        trunk: images -> boundary, as `cut` makes it.
        tail: (boundary, target, references, alpha) -> the outputs; of a zero-shot model with class_embeddings.
        manifest: names the inputs and outputs.
        opset: 18 to 20; older ones lack LayerNormalization's companions, newer ones have an Attention that TensorRT
            cannot take.

    Raises:
        ExportError: an operation that ONNX, or TensorRT behind it, has no form for.
    """
    with refusing("putting trunk and tail together"):
        assembly = Assembly(fake_mode(trunk.graph))
        values = [node.meta["val"] for node in tail.graph.nodes if node.op == "placeholder"]
        images = next(node for node in trunk.graph.nodes if node.op == "placeholder")
        names = iter(manifest.inputs)
        boundary = assembly.add(trunk, [assembly.input(next(names), images.meta["val"])])
        contrast = [assembly.input(name, value) for name, value in zip(names, values[len(boundary) :], strict=True)]
        outputs = assembly.add(tail, [*boundary, *contrast])
        # the boundary too, so that the nodes before it are known in the ONNX graph; _name_parts takes it off again
        crossing = [node for node in boundary if isinstance(node.meta["val"], torch.Tensor)]
        program = assembly.program([*outputs, *crossing])
    # the boundary behind the outputs keeps names of the exporter's
    axes = {"images": "batch", EMBEDDINGS: "classes"}
    model = to_onnx(program, manifest.inputs, manifest.outputs, opset, axes)
    _name_parts(model, len(manifest.outputs))
    return model


def check_size(*parts: nn.Module) -> None:
    """Refuse what would not fit into one ONNX file, before the work on its derivative.

    Raises:
        ExportError: more weights than there is room for.
    """
    weights = {value.data_ptr(): value.nbytes for part in parts for value in part.state_dict().values()}
    if sum(weights.values()) >= MOST_BYTES:
        raise ExportError(
            f"the model's weights take {sum(weights.values()) / 2**30:.1f} GiB, and an engine is one ONNX file of less "
            f"than {MOST_BYTES / 2**30:g} GiB; choose a smaller model."
        )


def to_onnx(
    program: ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
    axes: Mapping[str, str],
) -> onnx_ir.Model:
    """A program as an ONNX model without the exporter's traces, of operations that TensorRT takes as well.

    Args:
        program: what `Assembly` and torch.export make. It is used up.
        input_names: of all inputs.
        output_names: of the first outputs.
        opset: see `emit`.
        axes: what the first axis of some of the inputs is called.

    Raises:
        ExportError: see `emit`.
    """
    try:
        with torch.no_grad(), quiet(), one_registry():
            model = _converted(program, input_names, output_names, opset)
            simplify(model)
    except Exception as error:
        raise ExportError(f"ONNX has no form for a part of this model ({_cause(error)}).") from error
    _check_operations(model)
    _read_weights_as_stored(model)
    _name_axes(model, axes)
    keep_sources(model)
    return model


def _converted(
    program: ExportedProgram, input_names: Sequence[str], output_names: Sequence[str], opset: int
) -> onnx_ir.Model:
    """The program as the exporter writes it.

    The exporter first takes composite operations apart, a fifth of an export, and makes those that write in place pure.
    The stages before this one have left few of either, and it has no form for them: where it meets one, it may.
    """

    def convert() -> onnx_ir.Model:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            optimize=False,
        )
        assert exported is not None
        model: onnx_ir.Model = exported.model
        return model

    program.run_decompositions = lambda _table: program
    try:
        return convert()
    except torch.onnx.OnnxExporterError:
        del program.run_decompositions
        return convert()


def save(model: onnx_ir.Model, manifest: Manifest | TailManifest, path: Path) -> None:
    """Write the model with its manifest; one file, so at most 2 GiB.

    Raises:
        ExportError: the weights do not fit into one ONNX file, or the folder cannot be written.
    """
    import onnx_ir
    from google.protobuf.message import EncodeError

    model.metadata_props[METADATA_KEY if isinstance(manifest, Manifest) else TAIL_KEY] = manifest.to_json()
    try:
        onnx_ir.save(model, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error.strerror or first_line(error)}).") from error
    except (ValueError, EncodeError) as error:
        raise ExportError(f"the model does not fit into one ONNX file of 2 GiB ({first_line(error)}).") from error


def _name_parts(model: onnx_ir.Model, outputs: int) -> None:
    """Take the boundary off the outputs, and call the nodes trunk/... and tail/...: what quantises asks for names."""
    waiting = [value.producer() for value in model.graph.outputs[outputs:]]
    del model.graph.outputs[outputs:]
    trunk: set[onnx_ir.Node] = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in trunk:
            trunk.add(node)
            waiting.extend(value.producer() for value in node.inputs if value is not None)
    for node in model.graph.all_nodes():
        part, place = (TRUNK, "before the target layer") if node in trunk else (TAIL, "behind the target layer")
        node.name = f"{part}{node.name}"
        node.metadata_props.setdefault(SOURCE_KEY, place)  # of derivatives, and of what passes have made


def _name_axes(model: onnx_ir.Model, axes: Mapping[str, str]) -> None:
    """Give dynamic axes names in the place of the tracer's symbols, wherever these come up.

    Raises:
        ExportError: one of them is not dynamic.
    """
    import onnx_ir

    symbols = {}
    for given in model.graph.inputs:
        name = axes.get(str(given.name))
        if given.shape is None or name is None:
            continue
        size = given.shape[0]
        if not isinstance(size, onnx_ir.SymbolicDim):
            raise ExportError(
                f"the derivative behind this layer holds for an axis `{name}` of {size} alone, as where a model mixes "
                "the images of a batch; choose a later target layer."
            )
        symbols[str(size.value)] = name
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None and any(isinstance(size, onnx_ir.SymbolicDim) for size in value.shape):
            sizes = [size if isinstance(size, int) else size.value for size in value.shape]
            value.shape = onnx_ir.Shape(
                symbol.sub(lambda found: symbols[found[0]], size) if isinstance(size, str) else size for size in sizes
            )


def _check_operations(model: onnx_ir.Model) -> None:
    """TensorRT gives no statistics and takes no indices of a MaxPool; nothing of ours may need them."""
    for node in model.graph.all_nodes():
        if node.op_type == "LayerNormalization" and any(output.uses() for output in node.outputs[1:]):
            raise ExportError(
                "the model reads the statistics of a layer normalisation, which TensorRT cannot give; choose a later "
                "target layer."
            )
        if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
            raise ExportError(
                "the model reads the indices of a max pooling, which TensorRT cannot take; choose a later target layer."
            )


def _read_weights_as_stored(model: onnx_ir.Model) -> None:
    """Gemm with a transposed weight becomes Gemm with transB: a runtime would keep both forms in memory otherwise."""
    import onnx_ir

    for node in model.graph.all_nodes():
        weight = node.inputs[1].producer() if node.op_type == "Gemm" and node.inputs[1] is not None else None
        if weight is None or weight.op_type != "Transpose" or weight.inputs[0] is None:
            continue
        if "transB" in node.attributes and node.attributes["transB"].as_int() != 0:
            continue
        if weight.inputs[0].is_initializer() and weight.inputs[0].shape is not None:
            node.replace_input_with(1, weight.inputs[0])
            node.attributes["transB"] = onnx_ir.AttrInt64("transB", 1)
            if not weight.outputs[0].uses():
                model.graph.remove(weight, safe=True)


def _cause(error: BaseException) -> str:
    """The innermost cause: what failed, rather than in which step of the exporter; an operation by its name alone."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
    return f"the operation {missing[1]}" if missing else first_line(error)
