"""What an engine's graph takes and gives, held against what its manifest says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import EngineError
from finercam_rt.manifest import ACTIVATIONS, EMBEDDINGS, Manifest

BATCH, CLASSES = -1, -2
"""Stand for N, and for K where the classes are an input, in the expected shapes."""
_LETTERS = {BATCH: "N", CLASSES: "K"}
_FLOAT32, _INT64 = np.dtype(np.float32), np.dtype(np.int64)


class Value(NamedTuple):
    """One input or output: its dtype's name, and its shape with symbols or None where it is not fixed."""

    dtype: str
    shape: Sequence[int | str | None]


class Interface(NamedTuple):
    """Name to (dtype, shape with BATCH and CLASSES in it) of the inputs and of the outputs."""

    inputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
    outputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]

    def buffers(self, sizes: Sizes) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Arrays for the inputs and the outputs of a run of these sizes, not initialised."""
        inputs, outputs = (
            {name: np.empty(sizes.of(shape), dtype) for name, (dtype, shape) in values.items()} for values in self
        )
        return inputs, outputs

    def predicting(self) -> Interface:
        """What the logits alone are made from."""
        inputs = {name: value for name, value in self.inputs.items() if name in ("images", EMBEDDINGS)}
        return Interface(inputs, {"logits": self.outputs["logits"]})


class Sizes(NamedTuple):
    """What a run's shapes depend on: N, and K where the classes are an input, else 0."""

    batch: int
    classes: int = 0

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape with these sizes in the place of BATCH and CLASSES."""
        return tuple(self.batch if size == BATCH else self.classes if size == CLASSES else size for size in shape)


def sizes_of(feeds: Mapping[str, NDArray[Any]]) -> Sizes:
    """The sizes of the run that these inputs ask for."""
    return Sizes(len(feeds["images"]), classes_of(feeds))


def classes_of(feeds: Mapping[str, NDArray[Any]]) -> int:
    """K where the classes are an input, else 0."""
    embeddings = feeds.get(EMBEDDINGS)
    return 0 if embeddings is None else len(embeddings)


def expected_interface(manifest: Manifest) -> Interface:
    """The graph interface of DESIGN, section 3, with this manifest's sizes."""
    contrasts = (BATCH,) if manifest.contrasts == 1 else (BATCH, manifest.contrasts)
    references = (*contrasts, manifest.references)
    classes = CLASSES if manifest.num_classes is None else manifest.num_classes
    inputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "images": (_FLOAT32, (BATCH, *manifest.input.shape)),
        "target": (_INT64, contrasts),
        "references": (_INT64, references),
        "alpha": (_FLOAT32, contrasts),
    }
    if manifest.zero_shot is not None:
        inputs[EMBEDDINGS] = (_FLOAT32, (CLASSES, manifest.zero_shot.embedding_dim))
    maps = {} if manifest.taps else {"saliency_map": (_FLOAT32, (*contrasts, *manifest.grid))}
    outputs: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        "logits": (_FLOAT32, (BATCH, classes)),
        **maps,
        "target_class": (_INT64, contrasts),
        "reference_classes": (_INT64, references),
    }
    for name, layer in manifest.layer_outputs.items():
        outputs[name] = (_FLOAT32, (*contrasts, *layer.grid))
    if manifest.taps is not None:
        feature_map = manifest.layers[0].shape(manifest.taps.channels)
        second = feature_map if manifest.taps.gradients else (manifest.taps.channels,)
        outputs[ACTIVATIONS] = (_FLOAT32, (BATCH, *feature_map))
        outputs[manifest.taps.second] = (_FLOAT32, (*contrasts, *second))
        for name, shape in manifest.taps.carried_outputs.items():
            outputs[name] = (_FLOAT32, (BATCH, *shape))
    return Interface(inputs, outputs)


def checked_interface(
    inputs: Mapping[str, Value], outputs: Mapping[str, Value], manifest: Manifest, path: Path
) -> Interface:
    """What to bind, once the graph is known to be what its manifest says; EngineError where it is not."""
    expected = expected_interface(manifest)
    _check("input", expected.inputs, inputs, path)
    _check("output", expected.outputs, outputs, path)
    return expected


def fixed_batch(inputs: Mapping[str, Value]) -> int | None:
    """N where the graph's batch is fixed, None where it is dynamic."""
    batch = inputs["images"].shape[0]
    return batch if isinstance(batch, int) else None


def _check(
    kind: str,
    expected: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    found: Mapping[str, Value],
    path: Path,
) -> None:
    if set(found) != set(expected):
        raise EngineError(
            f"{path}: its graph has the {kind}s {', '.join(found) or 'none'}, and an engine has "
            f"{', '.join(expected)}; export it again."
        )
    for name, (dtype, shape) in expected.items():
        value = found[name]
        if value.dtype != dtype.name or not _fits(value.shape, shape):
            raise EngineError(
                f"{path}: its {kind} {name} is {value.dtype} {_text(value.shape)}, and its manifest says {dtype.name} "
                f"{_text(shape)}; export it again."
            )


def _fits(found: Sequence[int | str | None], expected: tuple[int, ...]) -> bool:
    """Whether a shape with symbols in it can be the expected one."""
    return len(found) == len(expected) and all(
        not isinstance(a, int) or b == BATCH or a == b for a, b in zip(found, expected, strict=True)
    )


def _text(shape: Sequence[int | str | None]) -> str:
    return f"({','.join('?' if d is None else _LETTERS.get(d, str(d)) if isinstance(d, int) else d for d in shape)})"
