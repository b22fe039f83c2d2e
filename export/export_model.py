"""The whole export: model in, verified engine out."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finercam_rt.embeddings import ClassEmbeddings, random_embeddings
from finercam_rt.engine import Engine
from finercam_rt.errors import BackendError, EngineError, ExportError
from finercam_rt.export.capture import Captured, capture
from finercam_rt.export.channels import fitted, found_channels
from finercam_rt.export.check_tensorrt import CHECKS, check_tensorrt
from finercam_rt.export.classifier import Classifier, ClassifierRequest, as_classifier
from finercam_rt.export.cut import Split, cut, passes_beside, share_behind
from finercam_rt.export.emit import OPSETS, check_size, emit, save
from finercam_rt.export.fold import fold_batch_norms
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.method import channels_of
from finercam_rt.export.prove import UNPINNED, LayoutRequest
from finercam_rt.export.reduce import check_precision, reduce, take_samples
from finercam_rt.export.refusal import check_logits, first_line, refusing
from finercam_rt.export.tail import carried_shapes, cut_sha256, write_tail
from finercam_rt.export.undisturbed import undisturbed
from finercam_rt.export.verify import verification_images, verify
from finercam_rt.export.vjp import Request, explained_tail
from finercam_rt.export.warped import check_not_warped
from finercam_rt.export.weights_hash import weights_sha256
from finercam_rt.export.zero_shot import ZeroShot
from finercam_rt.files import file_to_write
from finercam_rt.images import ImageSource
from finercam_rt.manifest import (
    HEADS,
    IMAGENET_INPUT,
    METHODS,
    OBJECTIVES,
    InputSpec,
    Manifest,
    ModelInfo,
    TapsInfo,
    ZeroShotInfo,
)
from finercam_rt.tensorrt.library import load_library

EARLY = 0.9
"""The share of a model's operations behind the layer from which on "auto" says so."""

VERIFICATION_CLASSES = 8

REFERENCES = 3
"""Reference classes an image where the caller does not say, or as many as there are besides the target."""


@undisturbed
def export_model(
    model: nn.Module | torch.export.ExportedProgram,
    path: str | os.PathLike[str],
    *,
    target_layer: str | Sequence[str] = "auto",
    input: InputSpec = IMAGENET_INPUT,
    channels: int | None = None,
    classes: Sequence[str] | None = None,
    method: str = "gradcam",
    objective: str = "weighted",
    references: int | None = None,
    contrasts: int = 1,
    layer_maps: bool = False,
    head: str = "graph",
    gradients: bool = False,
    tail: str | os.PathLike[str] | None = None,
    layout: LayoutRequest = UNPINNED,
    output: str | int | None = None,
    binary: bool = False,
    inputs: Mapping[str, Any] | None = None,
    images: torch.Tensor | None = None,
    name: str | None = None,
    opset: int = 20,
    precision: str = "fp32",
    calibration: Sequence[ImageSource] = (),
    force: bool = False,
    class_embeddings: ClassEmbeddings | None = None,
    check: str | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Compile `model` and its Finer-CAM map into one ONNX file that holds its manifest.

    The file appears at `path` only after its logits and maps were found equal to eager autograd's
    (relative L2 error at most 1e-4).

    Args:
        model: on the CPU, in evaluation mode; its image input is (N,C,H,W), its logits are (N,K), K >= 2, alone or
            among other outputs. Wrappers of torch.compile and DataParallel, frozen weights, weights of another
            floating type and a forward under no_grad are all right; so is a torch.export program with a dynamic
            batch. It is not changed; see export/classifier.py. Of a ZeroShot the classes are an input of the graph,
            `class_embeddings` (K,D), K >= 2 at each run.
        path: where the engine goes, usually NAME.onnx.
        target_layer: the module whose output the map is drawn from, or "auto". With several of them the map is the
            mean of their maps, each min-max normalised and resized to the largest grid.
        input: how photographs become the model's input; its size fixes H and W. One value of mean and std is that of
            all channels.
        channels: C of the images; None finds it: see channels.found_channels. One channel is grey, three are RGB.
        classes: the K names of the classes.
        method: how activations and gradients become the map, one of manifest.METHODS; any with the Finer seed.
        objective: "weighted" (softmax-weighted references), "mean" (the paper's), or "softmax" (the target's share of
            all classes' softmax less the references' mean share).
        references: R, how many reference classes an image is contrasted with, at most K - 1; None is 3, or K - 1 where
            that is less. Of a ZeroShot, whose K each run says, those that a run of fewer classes lacks take no part.
        contrasts: P, how many (target, references, alpha) triples an image the graph explains in one run.
        layer_maps: whether the raw map of each of several target layers is an output of its own as well.
        head: "graph": the map is an output of the graph. "taps": the activations and what the method needs of their
            gradients are, and the runtime makes the map.
        gradients: of head "taps": whether the gradients at every position are an output even where the method takes
            only their means, so that the engine draws every method (`Engine(path, method=...)`).
        tail: of head "taps": where to write the graph from the activations to the logits as well, which runs masked
            activations without the trunk (`finercam_rt.Tail`); the engine then gives the values that it reads besides.
        layout: layout, grid and prefix tokens of the layer's output where they cannot be inferred.
        output: the name or position of the logits among several outputs, where they are not called "logits" nor the
            only (N,K) tensor.
        binary: whether the model's one logit z is a sigmoid's, of yes against no. The engine then has two classes, of
            the logits -z/2 and z/2, whose softmax are the same probabilities; one class name is that of yes.
        inputs: constants for the model's other inputs, by name; a list or a tensor is that of one image.
        images: (N,C,H,W) float32, N >= 2, normalised, to verify on; None takes five of seeded noise.
        name: the model's name in the manifest; its class name by default.
        opset: ONNX opset, 18 to 20.
        precision: of the trunk, one of manifest.PRECISIONS; what lies behind the target layer stays in fp32. The engine
            is compared with its fp32 twin, and fails below the thresholds of export/gate.py.
        calibration: photographs like those that the engine will see, 8 at least for int8, whose ranges are taken from
            up to 128 of them; others of them, up to 64, are what the twins are compared on, where there are no images.
        force: whether to write an engine that differs from its twin by more, or whose maps float32 cannot hold (where
            rounding moves PyTorch's own as far); its manifest says so.
        class_embeddings: of a ZeroShot, to verify with and to compare precisions on; None takes random directions.
        check: "tensorrt": whether TensorRT takes the graph as well; needs TensorRT-RTX, or TensorRT and a GPU. The
            manifest then says how many kernels it makes of it.
        on_stage: called with a short phrase when a stage begins.

    Returns:
        The manifest, with what the verification measured.

    Raises:
        ExportError: the model, the layer or an operation cannot be compiled, or the result differs from the model.
        InputError: a photograph of `calibration` cannot be read, or a path is a device or a pipe.
        BackendError: no TensorRT to check with.
    """
    destination = _checked_destination(Path(path))
    names = [target_layer] if isinstance(target_layer, str) else list(target_layer)
    _check_arguments(names, method, objective, references, contrasts, opset)
    if layer_maps and len(names) == 1:
        raise ExportError("there is one target layer, whose map is the saliency map itself; leave layer maps out.")
    gradients = _check_head(head, gradients, method, len(names))
    tail_destination = None if tail is None else _checked_tail(Path(tail), destination, head)
    if check is not None and check not in CHECKS:
        raise ExportError(f"there is no check {check!r}; give {', '.join(CHECKS)}.")
    if check is not None and precision == "int8":
        raise ExportError("int8 has zero points, which TensorRT does not take; give int8-symmetric, or no check.")
    library = None if check is None else load_library("auto")
    check_precision(precision, calibration)

    on_stage("finding the target layer")

    def adapt(channels: int) -> Classifier:
        noise = verification_images((channels, *input.size))
        return as_classifier(model, noise[:2], ClassifierRequest(output, inputs or {}, binary))

    channels, classifier = found_channels(model, adapt, channels)
    input = fitted(input, channels)
    example = _example(input, images)
    samples = take_samples(precision, calibration, input, None if images is None else example)
    with refusing("looking for the target layer"):
        check_logits(classifier.module, example[:2])
        pooled = METHODS[method] == "pooled"
        layers = tuple(find_target_layer(classifier.module, name, example[:2], layout, pooled=pooled) for name in names)
    zero_shot = None
    if isinstance(classifier.module, ZeroShot) and tail is not None:
        raise ExportError("the logits of a zero-shot model need the classes of each run; leave the tail out.")
    if isinstance(classifier.module, ZeroShot):
        width, constants = classifier.width, classifier.module.logit_constants
        zero_shot = ZeroShotInfo(width, *constants, text_sha256=classifier.module.text_sha256())
    num_classes = classifier.width if zero_shot is None else None
    if binary and classes is not None and len(classes) == 1:
        classes = (f"not {classes[0]}", classes[0])
    if num_classes is not None:
        _check_classes(num_classes, classes, class_embeddings)
    elif classes is not None:
        raise ExportError("a zero-shot model gets its classes when it runs; leave the class names out.")
    references = _number_of_references(references, num_classes)
    if zero_shot is not None and class_embeddings is None:
        directions = random_embeddings(max(VERIFICATION_CLASSES, references + 2), classifier.width)
        class_embeddings = ClassEmbeddings(directions, tuple(map(str, range(len(directions)))))

    on_stage(f"capturing the graph up to layer {layers[0].name!r} and after it")
    captured = capture(classifier.module, layers, example[:2])
    check_not_warped(captured, layers)
    captured, folded = fold_batch_norms(captured)
    split = cut(captured)
    check_size(split.trunk, split.tail)
    notes = [*classifier.notes, *(_said_of(captured, split, classifier.width) if names == ["auto"] else [])]
    on_stage("differentiating the tail")
    model_info = ModelInfo(name or type(classifier.source).__name__, weights_sha256(classifier.source.state_dict()))
    taps = None
    if head == "taps":
        taps = TapsInfo(channels_of(split.boundary[0], layers[0]), gradients)
        if tail is not None:
            cut_id = cut_sha256(split, model_info.weights_sha256, layers[0])
            taps = dataclasses.replace(taps, carried=carried_shapes(split), cut_sha256=cut_id)
    request = Request(method, objective, references, contrasts, layer_maps, zero_shot, taps)
    explained = explained_tail(split, layers, request)
    manifest = Manifest(
        model=model_info,
        input=input,
        classes=None if classes is None else tuple(classes),
        num_classes=num_classes,
        layers=layers,
        method=method,
        objective=objective,
        references=references,
        contrasts=contrasts,
        layer_maps=layer_maps,
        zero_shot=zero_shot,
        head=head,
        taps=taps,
        opset=opset,
        passes=(*notes, *folded, *explained.passes),
        producer=_producer(),
    )
    on_stage("writing ONNX")
    write = partial(emit, tail=explained.graph_module, manifest=manifest)
    graph = write(split.trunk, opset=opset)
    with ExitStack() as folders:

        def beside(file: Path) -> Path:
            folder = tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.")
            return Path(folders.enter_context(folder)) / file.name

        draft = beside(destination)
        tail_draft = None if tail_destination is None else beside(tail_destination)
        save(graph, manifest, draft)
        on_stage("verifying against eager autograd")
        try:
            with Engine(draft, backend="onnxruntime", device="cpu") as engine:
                measured = verify(engine, classifier.module, example, class_embeddings, force=force)
                if tail_draft is not None:
                    write_tail(tail_draft, split, engine, classifier.module, example)
        except (EngineError, BackendError) as error:
            reason = first_line(error).replace(f"{draft}: ", "").replace(str(draft), destination.name)
            raise ExportError(f"the compiled graph does not run ({reason}); nothing was written.") from error
        manifest = dataclasses.replace(manifest, verification=measured)
        if precision != "fp32":
            on_stage(f"computing the trunk in {precision} and comparing with fp32 on {samples.described}")
            vectors = None if class_embeddings is None else class_embeddings.values
            graph, manifest = reduce(
                split.trunk, explained.graph_module, write, draft, manifest, precision, samples, force, vectors
            )
        save(graph, manifest, draft)
        if library is not None:
            on_stage(f"building it with {library.flavour}, to see that it can")
            found = {"tensorrt": check_tensorrt(draft, library)}
            manifest = dataclasses.replace(manifest, verification=manifest.verification | found)
            save(graph, manifest, draft)
        if tail_draft is not None and tail_destination is not None:
            os.replace(tail_draft, tail_destination)
        os.replace(draft, destination)
    return manifest


def _check_arguments(
    target_layers: Sequence[str], method: str, objective: str, references: int | None, contrasts: int, opset: int
) -> None:
    if method not in METHODS:
        raise ExportError(f"method {method!r} is unknown; give one of {', '.join(METHODS)}.")
    if objective not in OBJECTIVES:
        raise ExportError(f"objective {objective!r} is unknown; give one of {', '.join(OBJECTIVES)}.")
    if references is not None and references < 1:
        raise ExportError(f"references is {references}, and a contrast needs at least 1.")
    if contrasts < 1:
        raise ExportError(f"contrasts is {contrasts}, and an explanation needs at least 1.")
    if len(set(target_layers)) < max(1, len(target_layers)):
        raise ExportError("target layers must be given, and each only once.")
    if "auto" in target_layers and len(target_layers) > 1:
        raise ExportError("the target layer 'auto' stands alone; name all layers where there are several.")
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported; give one of {', '.join(map(str, OPSETS))}.")


def _checked_destination(path: Path) -> Path:
    """The file that is written; see files.file_to_write."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder; give the name of the file to write, such as model.onnx.")
    destination = file_to_write(path)
    if not destination.parent.is_dir():
        raise ExportError(f"the folder {destination.parent} does not exist; make it first.")
    try:
        with tempfile.TemporaryFile(dir=destination.parent):
            pass
    except OSError:  # permission bits alone would not tell: root ignores them, and file systems have their own rules
        raise ExportError(f"the folder {destination.parent} cannot be written; choose another.") from None
    return destination


def _check_head(head: str, gradients: bool, method: str, layers: int) -> bool:
    """Whether head "taps" gives the gradients at every position."""
    if head not in HEADS:
        raise ExportError(f"head {head!r} is unknown; give one of {', '.join(HEADS)}.")
    if head == "graph":
        if gradients:
            raise ExportError("the gradients are an output of head 'taps' alone; give that head, or leave them out.")
        return False
    if layers > 1:
        raise ExportError("head 'taps' is of one target layer; name one, or export several with head 'graph'.")
    needs = METHODS[method]
    if needs == "nothing" and not gradients:
        raise ExportError(
            f"method {method!r} reads no gradients; export it with head 'graph', or ask for the gradients too, from "
            "which other methods can be drawn."
        )
    return gradients or needs == "gradients"


def _checked_tail(tail: Path, engine: Path, head: str) -> Path:
    if head != "taps":
        raise ExportError("a tail belongs to an engine of head 'taps', which gives what it reads; give that head.")
    if tail.resolve() == engine.resolve():
        raise ExportError(f"{tail} is the engine itself; give the tail another name, such as NAME.tail.onnx.")
    return _checked_destination(tail)


def _check_classes(num_classes: int, classes: Sequence[str] | None, class_embeddings: ClassEmbeddings | None) -> None:
    if num_classes < 2:
        raise ExportError(
            "the model has one class, so there is nothing to contrast it with; where its logit is a sigmoid's, of yes "
            "against no, give --binary (binary=True in Python)."
        )
    if classes is not None and len(classes) != num_classes:
        raise ExportError(
            f"{len(classes)} class names were given for a model of {num_classes} classes; give one a class."
        )
    if class_embeddings is not None:
        raise ExportError("the model has classes of its own; leave class embeddings out.")


def _number_of_references(asked: int | None, num_classes: int | None) -> int:
    """R; num_classes is None of a zero-shot model, whose runs say how many there are."""
    most = REFERENCES if num_classes is None else num_classes - 1
    if asked is None:
        return min(REFERENCES, most)
    if num_classes is not None and asked > most:
        raise ExportError(
            f"references is {asked}, and the model has {num_classes} classes, {most} of them beside the one that is "
            f"explained; give {'1' if most == 1 else f'1 to {most}'}, or leave it out."
        )
    return asked


def _said_of(captured: Captured, split: Split, classes: int) -> list[str]:
    """What is said of a layer that was found among a model's first operations, or in one of several branches."""
    notes = []
    behind = share_behind(split)
    if behind >= EARLY:
        notes.append(
            f"layer: {behind:.0%} OF THE MODEL'S OPERATIONS COME BEHIND IT, since no later map was found that "
            "everything passes through; name a later layer if there is one"
        )
    if passes_beside(captured, split, classes):
        notes.append(
            "layer: ANOTHER BRANCH OF THE MODEL DOES NOT PASS THROUGH IT, and the map says nothing of what that one "
            "sees; name a layer of each branch if it has one"
        )
    return notes


def _example(input: InputSpec, images: torch.Tensor | None) -> torch.Tensor:
    if images is None:
        return verification_images(input.shape)
    if images.ndim != 4 or tuple(images.shape[1:]) != input.shape or images.dtype != torch.float32 or len(images) < 2:
        raise ExportError(
            f"images must be (N,{input.channels},{input.size[0]},{input.size[1]}) float32 with N >= 2, "
            f"not {tuple(images.shape)} {str(images.dtype)[6:]}."
        )
    if not images.isfinite().all():
        raise ExportError("images hold values that are not finite; give normalised photographs.")
    return images.detach()


def _producer() -> dict[str, str]:
    versions = {
        package: importlib.metadata.version(package) for package in ("finercam-rt", "torch", "onnx", "onnxscript")
    }
    return {**versions, "python": platform.python_version()}
