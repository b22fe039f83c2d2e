"""The compiled engines of the models that were explained: made on first use, kept while the model is unchanged."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from finercam_rt.backends import PIN
from finercam_rt.compat.state import ModelState
from finercam_rt.compat.targets import SCORES
from finercam_rt.engine import Engine
from finercam_rt.errors import FinerCAMError, InputError, one_line
from finercam_rt.export.channels import counted
from finercam_rt.export.classifier import in_float32
from finercam_rt.export.eager import run_with_gradients
from finercam_rt.export.export_model import export_model
from finercam_rt.export.layers import find_target_layer
from finercam_rt.export.prove import LayoutRequest
from finercam_rt.manifest import InputSpec, LayerInfo

MAX_ENGINES = 8
MAX_BYTES = 2 << 30
"""How many engines are kept, and how large their files are together: each holds a copy of its model's weights."""

IMAGES = 2
"""That a model is examined with."""

OWN_RUN: ContextVar[bool] = ContextVar("finercam_rt.compat.own_run", default=False)
"""Whether it is this module that runs a model now, and not its owner."""

_LOG = logging.getLogger("finercam_rt.compat")


Shape: TypeAlias = "tuple[int, int, int]"
"""(C,H,W) of an image."""


class Spec(NamedTuple):
    """What an engine is made for, besides the model: fields of its manifest, and a key of SCORES."""

    layers: tuple[str, ...]
    shape: Shape
    method: str
    objective: str
    references: int = 3
    scores: str = "logits"


class Facts(NamedTuple):
    """The shapes of the layers' outputs for IMAGES images of a shape, and the number of classes."""

    shapes: tuple[torch.Size, ...]
    num_classes: int


@dataclass
class _Known:
    """One model: how it was when its engines were made."""

    model: weakref.ref[nn.Module]
    state: ModelState
    facts: dict[tuple[tuple[str, ...], Shape], Facts] = field(default_factory=dict)


class _Kept(NamedTuple):
    engine: Engine
    size: int


class EngineCache:
    """Engines by model and Spec, those used last; any number of threads may ask.

    What belongs to a model goes when it does, and when its weights, modules or hooks have changed. An engine that goes
    while it runs lives until it has.
    """

    def __init__(self, max_engines: int = MAX_ENGINES, max_bytes: int = MAX_BYTES) -> None:
        """An empty cache; the newest engine is kept, however large."""
        self.max_engines, self.max_bytes = max_engines, max_bytes
        self._known: dict[int, _Known] = {}
        self._engines: dict[tuple[int, Spec], _Kept] = {}  # the one used last at the end
        self._lock = threading.RLock()  # a model's end may come at any point, in any thread
        self._running: int | None = None
        self._compiling = threading.Lock()  # what runs models, too: their hooks and modes are changed meanwhile

    def __len__(self) -> int:
        """How many engines there are."""
        return len(self._engines)

    def clear(self) -> None:
        """Forget every engine and every model."""
        with self._lock:
            self._known.clear()
            self._engines.clear()

    def facts(self, model: nn.Module, layers: tuple[str, ...], shape: Shape) -> Facts:
        """What one forward pass says of `model`, remembered while it is unchanged; engines of an older state go.

        Raises:
            ExportError: a layer gives no tensor or does not run once, or the output is not one tensor of logits.
            InputError: the model does not run on images of that shape.
        """
        known = self._settled(model)
        if (layers, shape) not in known.facts:
            with self._compiling:
                if (layers, shape) not in known.facts:
                    with self._own_run(model) as subject:
                        known.facts[layers, shape] = _examine(subject, layers, shape)
        return known.facts[layers, shape]

    def engine(
        self, model: nn.Module, spec: Spec, facts: Facts, layout: Callable[[nn.Module], LayoutRequest]
    ) -> Engine:
        """The engine of `model` for `spec`, as it was when `facts` were found.

        Where it is made, `layout` is asked of the model in float32, which is what is compiled.
        """
        key = id(model), spec
        found = self._use(key)
        if found is None:
            with self._compiling:
                found = self._use(key)
                if found is None:
                    known = self._known.get(id(model))
                    with self._own_run(model) as subject:
                        kept = _compile(subject, spec, facts.num_classes, layout(subject))
                    self._keep(known, key, kept)
                    found = kept.engine
        return found

    def _settled(self, model: nn.Module) -> _Known:
        """The model as it is now, and not as it is while this module runs it with hooks of its own."""
        while True:
            with self._lock:
                if self._running != id(model):
                    return self._current(model)
            with self._compiling:
                pass

    @contextmanager
    def _own_run(self, model: nn.Module) -> Iterator[nn.Module]:
        """In evaluation mode; the model itself, or its copy in float32."""
        with self._lock:
            self._running = id(model)
        try:
            with _evaluating(model):
                yield in_float32(model)[0]
        finally:
            with self._lock:
                self._running = None

    def _current(self, model: nn.Module) -> _Known:
        known = self._known.get(id(model))
        if known is None or known.model() is not model or not known.state.matches(model):
            self._forget(id(model))
            number = id(model)
            known = _Known(weakref.ref(model, lambda _: self._forget(number)), ModelState(model))
            self._known[number] = known
        return known

    def _forget(self, number: int) -> None:
        with self._lock:
            self._known.pop(number, None)
            for key in [key for key in self._engines if key[0] == number]:
                del self._engines[key]

    def _use(self, key: tuple[int, Spec]) -> Engine | None:
        with self._lock:
            kept = self._engines.pop(key, None)
            if kept is None:
                return None
            self._engines[key] = kept
            return kept.engine

    def _keep(self, known: _Known | None, key: tuple[int, Spec], kept: _Kept) -> None:
        with self._lock:
            if known is None or self._known.get(key[0]) is not known:
                return  # the model changed meanwhile, or all was cleared
            self._engines[key] = kept
            while len(self._engines) > 1 and (
                len(self._engines) > self.max_engines
                or sum(each.size for each in self._engines.values()) > self.max_bytes
            ):
                del self._engines[next(iter(self._engines))]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with the modes put back after."""
    trained = [module for module in model.modules() if module.training]
    token = OWN_RUN.set(True)
    try:
        for module in trained:
            module.training = False  # and not eval(), which a model may have given another meaning
        with torch.inference_mode(False):
            yield
    finally:
        OWN_RUN.reset(token)
        for module in trained:
            module.training = True


class _Scored(nn.Module):
    """The logits of a model, and beside them the scores that are explained; of a single logit, its negative."""

    def __init__(self, model: nn.Module, scores: str, num_classes: int) -> None:
        super().__init__()
        self.model = model
        self._scores = SCORES[scores] if num_classes > 1 else torch.neg
        self.training = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.model(images)
        return torch.cat([logits, self._scores(logits)], 1)


def common_request(readings: Sequence[LayerInfo]) -> LayoutRequest:
    """What the readings of several layers have in common; the rest is found, and so is how any one is arranged."""
    if any(reading.arrangement is not None for reading in readings):
        return LayoutRequest()
    layouts, grids, prefixes = ({getattr(r, name) for r in readings} for name in ("layout", "grid", "prefix_tokens"))
    return LayoutRequest(
        layouts.pop() if len(layouts) == 1 else None,
        grids.pop() if len(grids) == 1 else None,
        prefixes.pop() if len(prefixes) == 1 else None,
    )


def example(shape: Shape) -> torch.Tensor:
    """As many images of seeded noise."""
    return torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(0))


def _examine(model: nn.Module, layers: tuple[str, ...], shape: Shape) -> Facts:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "cpu":
            raise InputError(
                f"the model is on {tensor.device}, and engines run on the CPU; move model and images with .cpu()."
            )
    try:
        outputs, logits = run_with_gradients(model, layers, example(shape))
    except FinerCAMError:
        raise
    except Exception as error:
        raise InputError(
            f"the model does not run on images of {shape[1]}x{shape[2]} and {counted(shape[0])} ({one_line(error)}); "
            "give those that it takes."
        ) from error
    return Facts(tuple(output.shape for output in outputs), int(logits.shape[1]))


def _compile(model: nn.Module, spec: Spec, num_classes: int, request: LayoutRequest) -> _Kept:
    """Export into a temporary folder and load; nothing stays on disk."""
    channels, height, width = spec.shape
    name = type(model).__name__
    _LOG.info(
        "compiling %s with %s at %s for images of %dx%d, once", name, spec.method, ", ".join(spec.layers), height, width
    )
    with tempfile.TemporaryDirectory(prefix="finercam-", ignore_cleanup_errors=True) as at:
        path = Path(at) / "engine.onnx"
        subject, layers, classes = model, spec.layers, num_classes
        if spec.scores != "logits" or num_classes == 1:
            # the wrapped model has other names, by which the export would find less
            found = [find_target_layer(model, layer, example(spec.shape), request) for layer in layers]
            request = common_request(found)
            subject, layers = _Scored(model, spec.scores, num_classes), tuple(f"model.{layer}" for layer in layers)
            classes = 2 * num_classes
        export_model(
            subject,
            path,
            target_layer=layers,
            input=InputSpec((height, width), (0.0,), (1.0,)),
            channels=channels,
            method=spec.method,
            objective=spec.objective,
            references=min(spec.references, classes - 1),
            layer_maps=len(layers) > 1,
            layout=request,
            name=name,
        )
        # the two runtimes are measured against each other only where the caller asks for that: it takes seconds
        backend = "auto" if os.environ.get(PIN) else "onnxruntime"
        return _Kept(Engine(path, backend=backend, threads=torch.get_num_threads()), path.stat().st_size)
