"""Stage 0: what the user has becomes images (N,C,H,W) -> logits (N,K), under the names of the user's own layers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional

from finercam_rt.errors import ExportError
from finercam_rt.export.adapter import Adapter
from finercam_rt.export.hooks import hooked
from finercam_rt.export.outputs import named_tensors
from finercam_rt.export.programs import module_of_program
from finercam_rt.export.refusal import check_finite, first_line, running
from finercam_rt.export.zero_shot import ZeroShot

IMAGE_NAMES = ("pixel_values", "images", "image", "imgs", "img", "x", "input", "inputs")
"""What forward methods call their images, the surest first."""

PROBABLE = 1e-3
"""How far from 1 the sum of an image's probabilities may be, rounded to half precision inside the model, say."""

_TO_BE_QUANTISED = (FloatFunctional, FXFloatFunctional)
"""Sums and products of models that PyTorch can quantise: they compute in float32, and lie among what is quantised."""

_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Classifier:
    """A model with one image input and one output of logits.

    module: images (N,C,H,W) float32 -> logits (N,K) float32, with the children, parameters and buffers of the user's
    model under the same names; of a ZeroShot, itself. source: the user's model without wrappers, in its own dtype.
    width: K, or of a ZeroShot the length D of its embeddings. notes: what was adapted,
    a line each.
    """

    module: nn.Module
    source: nn.Module
    width: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassifierRequest:
    """What the caller says of a model's inputs and outputs.

    output: the name or the position of the logits among several outputs; None finds them. inputs: constants for the
    inputs besides the image, by name; a list or a tensor is that of one image and is repeated for each. binary: whether
    the model's one logit z is that of a sigmoid. It becomes two classes, no and yes, of the logits -z/2 and z/2, whose
    softmax are the same probabilities.
    """

    output: str | int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False


def as_classifier(model: object, example: torch.Tensor, request: ClassifierRequest | None = None) -> Classifier:
    """Adapt a model; it is not changed.

    Wrappers of torch.compile, DataParallel and DistributedDataParallel are taken off, compiled parts run uncompiled,
    weights of other floating types are copied to float32, and torch.no_grad inside forward is without effect.

    Args:
        model: a torch.nn.Module in evaluation mode, or a torch.export.ExportedProgram with a dynamic batch.
        example: (N,C,H,W) float32, N >= 2, which the model is run on once.
        request: which output and which constants, where that has to be said.

    Raises:
        ExportError: not a model that can be captured (TorchScript, quantised, on a device, in training mode), an input
            without a value, or outputs of which none or several may be the logits.
    """
    if torch.is_inference_mode_enabled():
        raise ExportError("the export runs under torch.inference_mode(), where there is no gradient; call it outside.")
    request = request or ClassifierRequest()
    if isinstance(model, ZeroShot):
        return _zero_shot(model, example, request)
    source, notes = _without_wrappers(model)
    _check(source)
    own, converted = in_float32(source)
    image, constants = _bind_inputs(own, request.inputs)
    adapter = Adapter(own, image, constants)
    output = _run_once(adapter, example)
    name, logits = _find_logits(output, len(example), request)
    check_finite(logits)
    width = logits.numel() // len(example)
    if request.binary and width != 1:
        raise ExportError(f"the model has {width} logits, so it has its classes already; leave --binary out.")
    adapter.read_from(name, logits, binary=request.binary)
    if image is not None:
        notes += [f"classifier: the images are its input {image!r}"]
    notes += [f"classifier: its input {key!r} is the constant {_shown(value)}" for key, value in constants.items()]
    if name:
        notes += [f"classifier: the logits are {name!r} of its {type(output).__name__}"]
    if request.binary:
        notes += ["classifier: its one logit z makes two classes, of the logits -z/2 and z/2"]
    if _are_probabilities(logits):
        notes += [
            "classifier: ITS OUTPUTS ARE PROBABILITIES, which are explained and given in the place of logits; better "
            "export it without its last softmax"
        ]
    elif _are_sigmoids(logits):
        notes += [
            "classifier: ITS OUTPUTS LIE BETWEEN 0 AND 1, as sigmoids of several labels do; they are explained and "
            "given in the place of logits, and their softmax is no probability; better export it without its last "
            "sigmoid"
        ]
    if adapter.call().switched_off:
        notes += ["classifier: gradients are taken although its forward switches them off"]
    return Classifier(adapter, source, 2 if request.binary else width, (*notes, *converted))


def _are_probabilities(logits: torch.Tensor) -> bool:
    """Whether the rows look like those of a softmax over two classes or more."""
    rows = logits.detach().reshape(len(logits), -1).double()
    return rows.shape[1] > 1 and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < PROBABLE).all())


def _are_sigmoids(logits: torch.Tensor) -> bool:
    """Whether the numbers look like those of a sigmoid a class."""
    return logits[0].numel() > 1 and bool(((logits > 0) & (logits < 1)).all())


def _zero_shot(model: ZeroShot, example: torch.Tensor, request: ClassifierRequest) -> Classifier:
    """It is images -> (N,D) already, and not copied: where `image` is a closure, a copy runs the original's tower."""
    if request.output is not None or request.inputs or request.binary:
        raise ExportError("a zero-shot model has one input and one output; leave --logits, --input and --binary out.")
    _check(model)
    for key, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ExportError(f"weight {key!r} is {str(value.dtype)[6:]}; convert the model with model.float().")
    embedding = _run_once(model, example)
    assert isinstance(embedding, torch.Tensor)
    check_finite(embedding)
    return Classifier(model, model, embedding.shape[1])


def _without_wrappers(model: object) -> tuple[nn.Module, list[str]]:
    """The user's own module, and what was taken off."""
    notes = []
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner: object = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            inner = model._orig_mod
        else:
            break
        notes.append(f"classifier: taken out of its {type(model).__name__}")
        model = inner
    if isinstance(model, torch.export.ExportedProgram):
        return module_of_program(model), [*notes, "classifier: from an exported program"]
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise ExportError(
            "the model is TorchScript, whose layers cannot be looked into; give the module it was made of."
        )
    if not isinstance(model, nn.Module):
        raise ExportError(f"the model is a {type(model).__name__}; give a torch.nn.Module.")
    return model, notes


def _check(model: nn.Module) -> None:
    """Refuse what cannot be captured as it stands, and a backbone of timm without its classifier."""
    head = getattr(model, "get_classifier", None)
    if getattr(model, "num_classes", None) == 0 and callable(head) and isinstance(head(), nn.Identity):
        raise ExportError(
            "the model has no classifier (num_classes=0), so that it gives features; put one on it, such as by "
            "--num-classes K or --linear-head FILE."
        )
    for name, module in model.named_modules():
        where = f"layer {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise ExportError(f"{where} is TorchScript, whose layers cannot be looked into; give the module of it.")
        package = type(module).__module__
        of_torch = package.startswith("torch.") and ".quantized" in package and type(module) not in _TO_BE_QUANTISED
        if of_torch or package.startswith(("bitsandbytes", "torchao")):
            raise _quantised(where)
        if module.training:
            raise ExportError(
                "the model is in training mode, where dropout and batch norm change the map; call model.eval()."
            )
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ExportError(f"weight {key!r} has no shape yet; run the model once before the export.")
        if tensor.is_quantized or type(tensor).__module__.startswith(("bitsandbytes", "torchao")):
            raise _quantised(f"weight {key!r}")
        if tensor.device.type == "meta":
            raise ExportError(f"weight {key!r} is on the meta device and has no values; load the weights first.")
        if tensor.device.type != "cpu":
            raise ExportError(f"weight {key!r} is on {tensor.device}; move the model with model.cpu().")
        if tensor.is_complex():
            raise ExportError(
                f"weight {key!r} is complex, which ONNX cannot hold; rewrite that layer with real numbers."
            )
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            raise ExportError(
                f"weight {key!r} is a {type(tensor).__name__}, not a plain tensor; give the model as it was before."
            )


def _quantised(what: str) -> ExportError:
    return ExportError(
        f"{what} is quantised by PyTorch; give the model as it was before, and export with int8 precision."
    )


def in_float32(model: _Model) -> tuple[_Model, list[str]]:
    """The model itself, or where it has weights of another floating type a float32 copy, and a line that says so."""
    weights = (*model.parameters(), *model.buffers())
    others = sorted({str(v.dtype)[6:] for v in weights if v.is_floating_point() and v.dtype != torch.float32})
    if not others:
        return model, []
    try:
        own = copy.deepcopy(model).float().eval()  # a copy of an fx.GraphModule is in training mode
    except Exception as error:
        raise ExportError(
            f"the model has {others[0]} weights and cannot be copied ({first_line(error)}); convert it with "
            "model.float()."
        ) from error
    return own, [f"classifier: its {' and '.join(others)} weights were converted to float32"]


def _bind_inputs(model: nn.Module, given: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The image's input, None for the first positional one, and the constants of the others."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [name for name in given if name not in named]
    if unknown and not open_ended:
        raise ExportError(f"the model has no input {unknown[0]!r}; it has {_listed(named)}.")
    free = [p for p in parameters if p.name not in given and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p for p in free if p.default is p.empty]
    image = min((p for p in free if p.name in IMAGE_NAMES), key=lambda p: IMAGE_NAMES.index(p.name), default=None)
    if image is None:
        if len(needed) > 1:
            raise ExportError(
                f"the model has the inputs {_listed(p.name for p in needed)}, and which is the image is not clear; "
                "give the others constants with --input NAME=VALUE (inputs in Python)."
            )
        image = next(iter(needed or free), None)
    without = [p.name for p in needed if image is not None and p.name != image.name]
    if without:
        raise ExportError(
            f"the model's input {without[0]!r}, besides the image, has no default; give it a constant with "
            f"--input {without[0]}=VALUE (inputs in Python)."
        )
    first = image is None or (image is parameters[0] and image.kind != image.KEYWORD_ONLY)
    return None if first or image is None else image.name, {key: _constant(value) for key, value in given.items()}


def _constant(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        try:
            return torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise ExportError(f"the input {value!r} is not a list of numbers; give numbers.") from None
    return value


def _shown(value: Any) -> str:
    return f"of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def _run_once(model: nn.Module, example: torch.Tensor) -> object:
    """The model's output on the example."""
    inference: list[str] = []
    reduced: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def enter(*_: object) -> None:
            if torch.is_inference_mode_enabled():
                inference.append(name)
            if torch.is_autocast_enabled("cpu"):
                reduced.append(name)

        return enter

    watched = ((module, watch(name)) for name, module in model.named_modules() if name)
    with hooked(watched), running("the model", example), torch.no_grad():
        output: object = model(example)
    if inference:
        raise ExportError(
            f"layer {inference[0]!r} runs under torch.inference_mode(), where there is no gradient; take that out of "
            "the model's forward, or write torch.no_grad()."
        )
    if reduced:
        raise ExportError(
            f"layer {reduced[0]!r} runs under torch.autocast, and the engine is compiled in float32; take that out of "
            "the model's forward, and give the precision with --precision."
        )
    return output


def _find_logits(output: object, count: int, request: ClassifierRequest) -> tuple[str, torch.Tensor]:
    """The name of the logits among the output's tensors, and they: (N,K), or with further axes of size 1; (N,) too
    where there is one an image."""
    wanted, least_axes = request.output, 1 if request.binary else 2
    tensors = dict(named_tensors(output))
    listed = ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in tensors.items())
    if not tensors:
        raise ExportError(f"the model returns a {type(output).__name__} and no tensor; it must return logits (N,K).")
    if wanted is not None:
        names = list(tensors)
        name = str(wanted)
        if name not in tensors and name.isdigit() and int(name) < len(names):
            name = names[int(name)]
        if name not in tensors or "" in tensors:
            has = "one tensor, which has no name; leave it out" if "" in tensors else listed
            raise ExportError(f"the model has no output {wanted!r}: it returns {has}.")
        fitting = [name]
    elif len(tensors) == 1:
        fitting = list(tensors)
    elif "logits" in tensors:
        fitting = ["logits"]
    else:
        fitting = _primary({name: value for name, value in tensors.items() if _are_logits(value, count, least_axes)})
        if len(fitting) > 1:
            some = ", ".join(f"{name!r} {tuple(tensors[name].shape)}" for name in fitting)
            raise ExportError(
                f"the model returns several tensors that may be the logits, {some}; say which with --logits NAME "
                "(output in Python)."
            )
    if not fitting or not _are_logits(tensors[fitting[0]], count, least_axes):
        found = f"{listed}, and" if "" not in tensors else f"a tensor of shape {tuple(tensors[''].shape)},"
        raise ExportError(
            f"the model must return logits (N,K), one number a class; it returns {found} not those: wrap it with the "
            "pooling and the layer that make them."
        )
    return fitting[0], tensors[fitting[0]]


def _primary(candidates: dict[str, torch.Tensor]) -> list[str]:
    """The names without those of what is the softmax, its logarithm or the sigmoid of another; all if none is left."""

    def made(value: torch.Tensor, logits: torch.Tensor) -> bool:
        rows, of = (tensor.detach().reshape(len(tensor), -1) for tensor in (value, logits))
        if rows.shape != of.shape:
            return False
        forms = (of.sigmoid(), *((of.softmax(1), of.log_softmax(1)) if of.shape[1] > 1 else ()))
        return any(torch.allclose(rows, form.to(rows.dtype), rtol=1e-3, atol=1e-6) for form in forms)

    found = candidates.items()
    kept = [name for name, value in found if not any(name != other and made(value, of) for other, of in found)]
    return kept or list(candidates)


def _are_logits(value: torch.Tensor, count: int, least_axes: int) -> bool:
    """(N,K), (N,K,1,1), (N,1,K) and the like: floating, with at most one axis behind N that is longer than 1."""
    if not value.is_floating_point() or value.ndim < least_axes or value.shape[0] != count:
        return False
    return value.numel() > 0 and sum(size > 1 for size in value.shape[1:]) <= 1


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none by name"
