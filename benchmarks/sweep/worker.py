"""One case in a process of its own: `python -m sweep.worker REQUEST`; a line of JSON for each stage as it ends.

A stage that kills the process takes nothing from those before it, and the last line begun says which one it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comparison import graphs, timing
from comparison.cases import Case
from comparison.contenders import OURS, PLAIN, Setting
from comparison.engines import ENGINE, FORWARD, Build, export_plainly
from comparison.memory import high_water_mib

from finercam_rt.errors import ExportError
from finercam_rt.export import LoadedModel, ModelRequest, export_model, load_model
from finercam_rt.manifest import LayerInfo, Manifest
from sweep.cases import CLASSES, Variant, earlier_layer, own_sizes
from sweep.check import check
from sweep.families import SHORTENED, as_given
from sweep.heads import BACKBONE, LIBRARY, LINEAR, feature_modules, replace_head
from sweep.oracle import Oracle, degenerate, placement
from sweep.records import LEAST_PLACEMENT
from sweep.weights import randomise

IMAGES = 3
CALIBRATION_IMAGES = 6
WEIGHTS_SEEDS = (1, 2, 3)
"""Tried in this order until a map has something to prove: a random network may speak against all its classes."""
CALIBRATION_SEED, IMAGES_SEED = 2, 20261
MOST_ROUNDS, LEAST_ROUNDS = 30, 3

Emit = Callable[[str, Mapping[str, Any]], None]


def main(text: str) -> int:
    """{"specification", "variant" (its fields), "layer" of the base case or null, "folder", "runtimes", "seconds"}."""
    request = json.loads(text)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for a result

    def emit(stage: str, value: Mapping[str, Any]) -> None:
        out.write(json.dumps({"stage": stage, "value": value}) + "\n")
        out.flush()

    run(emit=emit, asked=Variant(**request.pop("variant")), **request)
    return 0


def run(
    emit: Emit,
    specification: str,
    asked: Variant,
    layer: str | None,
    folder: str,
    runtimes: list[str],
    seconds: float,
) -> None:
    """All stages, one after the other; see records.STAGES for what they say."""
    graph = Build(Path(folder)).path(ENGINE)
    for seed in WEIGHTS_SEEDS:
        made = _made(emit, specification, asked, layer, graph, seed)
        if made is None:
            return
        model, manifest, images, judge = made
        nothing = degenerate(judge, manifest.references)
        if nothing is None:
            break
    emit("oracle", {"degenerate": nothing, "placement": placed(model, manifest.layers[0], images)})

    for runtime in runtimes:
        emit("begin", {"stage": runtime})
        emit(runtime, check(graph, runtime, judge))
        if runtime == "onnxruntime" and seconds > 0:
            emit("begin", {"stage": "cost"})
            emit("cost", cost(model, Build(Path(folder)), manifest.layers[0], images, seconds))


def _made(
    emit: Emit, specification: str, asked: Variant, layer: str | None, graph: Path, seed: int
) -> tuple[torch.nn.Module, Manifest, torch.Tensor, Oracle] | None:
    """The model with weights of this seed, what its export says, images and their oracle; None where it ends there."""
    emit("begin", {"stage": "model"})
    try:
        loaded, head = load(specification, asked, seed)
    except ExportError as error:
        emit("model", {"not_accepted": str(error)})
        return None
    size, model = loaded.input.size, loaded.model
    target_layer: str | None = "auto"
    if asked.early:
        target_layer = None if layer is None else earlier_layer(layer, [name for name, _ in model.named_modules()])
    if asked.depth is not None:
        with called_plainly(model, loaded.inputs):
            modules = feature_modules(model, images_of(2, size, IMAGES_SEED), asked.deepest)
        target_layer = modules[int(asked.depth * (len(modules) - 1))] if modules else None
    if target_layer is None:
        emit("model", {"not_accepted": "no earlier layer is known"})
        return None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    found = {"size": size, "parameters": parameters, "asked_layer": target_layer, "weights_seed": seed}
    emit("model", {**found, "classes": asked.classes, "head": head, "options": asked.options})

    emit("begin", {"stage": "export"})
    began = time.perf_counter()
    options = dict(asked.options)
    if "references" in options:  # drawn without a look at the classes
        options["references"] = min(options["references"], max(2, asked.classes) - 1)
    try:
        manifest = export_model(
            model,
            graph,
            target_layer=target_layer,
            input=loaded.input,
            name=specification,
            inputs=loaded.inputs,
            **options,
        )
    except ExportError as error:
        emit("export", {"refused": str(error)})
        return None
    emit("export", {**_exported(manifest), "seconds": time.perf_counter() - began, "peak_mib": high_water_mib()})

    emit("begin", {"stage": "oracle"})
    call_plainly(model, loaded.inputs)
    if asked.options.get("binary"):
        model.register_forward_hook(_two_classes)
    images = images_of(IMAGES, size, IMAGES_SEED)
    return model, manifest, images, Oracle(model, manifest.layers[0], images, manifest.method, manifest.objective)


def call_plainly(model: torch.nn.Module, inputs: Mapping[str, Any]) -> list[Any]:
    """From now on a call takes images and returns logits, as of transformers a call with `inputs` has them in fields.

    Returns:
        the hooks, which say so until they are removed.
    """

    def enter(_module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return given, {**inputs, **named}

    def leave(_module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output
        return output["logits"] if "logits" in output else output[0]  # PP-LCNet calls them its last hidden state

    return [model.register_forward_pre_hook(enter, with_kwargs=True), model.register_forward_hook(leave)]


@contextmanager
def called_plainly(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """`call_plainly`, inside."""
    hooks = call_plainly(model, inputs)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def placed(model: torch.nn.Module, layer: LayerInfo, images: torch.Tensor) -> float:
    """`placement`, on images (N,C,H,W) twice as large where it leaves a doubt and the model takes them.

    Where every position of a small grid sees the whole image, nothing shows where it lies; a reading is the layer's, at
    any size.
    """
    found = placement(model, layer, images, IMAGES_SEED)
    if found >= LEAST_PLACEMENT:
        return found
    height, width = (2 * edge for edge in images.shape[2:])
    larger = dataclasses.replace(layer, grid=(2 * layer.grid[0], 2 * layer.grid[1]))
    try:
        return max(found, placement(model, larger, images_of(IMAGES, (height, width), IMAGES_SEED), IMAGES_SEED))
    except Exception:  # whatever a model does with a size that it does not take
        return found


def _two_classes(_module: torch.nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """No and yes, (N,2), of a sigmoid's logit (N,1): their softmax is the sigmoid's probabilities."""
    return torch.cat((-logits / 2, logits / 2), dim=1)


def load(specification: str, variant: Variant, seed: int) -> tuple[LoadedModel, str]:
    """The model at the first of the variant's sizes that it accepts, with the weights of this seed, and its head.

    Raises:
        ExportError: it accepts none of them, with what it says of the last.
    """
    head = variant.head
    if head == BACKBONE and specification.startswith("transformers:"):
        head = LINEAR  # without one such a model gives no features, but fields
    classes = variant.classes if head == LIBRARY else CLASSES
    own = _build(specification, None, classes, seed)
    sizes = own_sizes(own.input.size)
    if sizes != [own.input.size]:
        own = _accepted(specification, sizes, classes, seed)
    if not variant.keeps_size:
        own = _accepted(specification, variant.candidates(own.input.size), classes, seed)
    images = images_of(CALIBRATION_IMAGES, own.input.size, CALIBRATION_SEED)
    if head != LIBRARY:
        torch.manual_seed(seed)
        with called_plainly(own.model, own.inputs):
            replaced = replace_head(own.model, variant.classes, head, images[:2])
        if replaced is None:  # several layers give the logits: only the library can change them
            head = LIBRARY
            replaced = _build(specification, own.input.size, variant.classes, seed).model
        own = dataclasses.replace(own, model=replaced)
    with called_plainly(own.model, own.inputs):
        randomise(own.model, images, seed)
    return own, head


def _accepted(specification: str, sizes: Sequence[tuple[int, int]], classes: int, seed: int) -> LoadedModel:
    refusal = ""
    for size in sizes:
        try:
            loaded = _build(specification, size, classes, seed)
            with torch.no_grad():
                loaded.model(torch.zeros(2, 3, *size), **loaded.inputs)
        except Exception as error:
            refusal = f"{size[0]}x{size[1]}: {type(error).__name__}: {error}".splitlines()[0]
        else:
            return loaded
    raise ExportError(refusal)


def _build(specification: str, size: tuple[int, int] | None, classes: int, seed: int) -> LoadedModel:
    torch.manual_seed(seed)
    arguments = SHORTENED.get(specification, {})
    with tempfile.TemporaryDirectory() as folder:
        return load_model(
            ModelRequest(
                as_given(specification, Path(folder)),
                random_weights=True,
                num_classes=classes,
                input_size=size,
                arguments=arguments,
            )
        )


def images_of(count: int, size: tuple[int, int], seed: int) -> torch.Tensor:
    """(N,3,H,W) float32 of coarse and fine noise together: with white noise alone pooled features are all the same."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    fine = torch.randn(count, 3, *size, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic") + 0.5 * fine


def cost(
    model: torch.nn.Module, folder: Build, layer: LayerInfo, images: torch.Tensor, seconds: float
) -> dict[str, Any]:
    """Explain over the plain forward pass, both in ONNX Runtime, one image, one thread, CPU time, interleaved."""
    size = (images.shape[2], images.shape[3])
    setting = Setting(Case("", "", "", layer.name), folder, None, layer, threads=1)
    one = images[:1].numpy()
    try:
        export_plainly(model, size, folder.path(FORWARD))
        plain = graphs.onnxruntime_forward(FORWARD)(setting)(one).call
    except Exception as error:  # torch.onnx writes files that ONNX Runtime does not load
        said = f"{type(error).__name__}: {error}".splitlines()[0].replace(f"{folder.path(FORWARD).parent}/", "")
        return {"left_out": f"the plain model is not exported: {said}"}
    calls = {OURS: graphs.engine(ENGINE)(setting)(one).call, PLAIN: plain}
    clocks = {name: partial(timing.timed, call) for name, call in calls.items()}
    walls = {name: min(clock()[1] for _ in range(2)) for name, clock in clocks.items()}
    short = frozenset(name for name, wall in walls.items() if wall < timing.SHORT)
    rounds = timing.plan_rounds(walls.values(), seconds, LEAST_ROUNDS, MOST_ROUNDS)
    samples = timing.interleave(clocks, rounds, short)
    found = timing.ratio(samples[OURS], samples[PLAIN])
    milliseconds = {name: 1e3 * timing.spread(sample.cpu)["median"] for name, sample in samples.items()}
    return {**{key: found[key] for key in ("ratio", "low", "high", "rounds")}, "cpu_ms": milliseconds}


def _exported(manifest: Manifest) -> dict[str, Any]:
    return {
        "layers": [dataclasses.asdict(layer) for layer in manifest.layers],
        "passes": list(manifest.passes),
        "verification": manifest.verification,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
