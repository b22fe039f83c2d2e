"""The manifest: what an engine is and how to feed it, as JSON inside the ONNX file (DESIGN, section 3)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from finercam_rt.arrangement import Arrangement, arrangement
from finercam_rt.errors import EngineError

SCHEMA = 1
"""The manifest's version; a file with a newer one is refused."""

METADATA_KEY = "finercam"
"""The key of the manifest in the ONNX file's metadata_props."""

SOURCE_KEY = "finercam.source"
"""The key, in a node's metadata_props, of the module, file and line of the model that it comes from."""

INPUTS = ("images", "target", "references", "alpha")
EMBEDDINGS = "class_embeddings"
"""The inputs of every engine's graph; a zero-shot model's has the embeddings of the classes besides."""

OUTPUTS = ("logits", "saliency_map", "target_class", "reference_classes")
"""Of a graph of head "graph"; the raw maps of several layers may follow. Of head "taps" the taps do, and no map is."""
ACTIVATIONS, GRADIENTS, CHANNEL_WEIGHTS = "activations", "gradients", "channel_weights"
"""The outputs of head "taps": the first, and one of the others."""

OBJECTIVES = ("weighted", "mean", "softmax")
LAYOUTS = ("nchw", "nhwc", "tokens")
Needs: TypeAlias = Literal["pooled", "gradients", "nothing"]
METHODS: dict[str, Needs] = {
    "gradcam": "pooled",
    "gradcam++": "gradients",
    "xgradcam": "gradients",
    "layercam": "gradients",
    "hirescam": "gradients",
    "gradcamelementwise": "gradients",
    "eigengradcam": "gradients",
    "fem": "nothing",
    "eigencam": "nothing",
    "gradcam-eigen": "pooled",
    "gradcam++-eigen": "gradients",
    "xgradcam-eigen": "gradients",
    "layercam-eigen": "gradients",
    "gradcamelementwise-eigen": "gradients",
}
"""What each method reads of the gradients: their mean over the positions, all of them, or nothing."""
HEADS = ("graph", "taps")
INT8 = ("int8", "int8-symmetric")
"""With zero points, for CPUs; with none but 0, for TensorRT."""
PRECISIONS = ("fp32", "fp16", "bf16", *INT8)
"""Of the trunk, what comes before the target layer's output; the tail and its derivative are in fp32."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "center_floor", "squash", "border")
GREY, RGB = 1, 3
"""The numbers of channels that photographs have; an engine of any other takes arrays."""

DAMAGE = (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What reading a field of a record raises that is not there, or holds something else than it should."""

DEFAULT_ALPHA = {"weighted": 1.0, "mean": 0.6, "softmax": 1.0}
"""The contrast strength of each objective where the caller gives none: its public code's, its paper's, the whole
difference of two probabilities (CLIP-ES, which has no references, is 0)."""


@dataclass(frozen=True)
class ModelInfo:
    """What was compiled: its name, and the SHA-256 of its weights (hex)."""

    name: str
    weights_sha256: str


@dataclass(frozen=True)
class InputSpec:
    """How a photograph becomes the graph's input.

    size is (height, width) in pixels; mean and std are one value a channel (of three: red, green, blue) for values in
    [0, 1]; the shorter edge is resized to floor(size / crop_pct) with `interpolation`, and the centre is cropped.
    crop_mode "center_floor" rounds the crop's offset down, as transformers does; "squash" resizes both edges instead;
    "border" resizes the longer edge and pads with the mean colour.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @property
    def channels(self) -> int:
        """C of the images (N,C,H,W): 1 is grey, 3 is RGB, and any other number what the model was trained on."""
        return max(len(self.mean), len(self.std))

    @functools.cached_property
    def shape(self) -> tuple[int, int, int]:
        """(C,H,W)."""
        return self.channels, *self.size

    @property
    def view_shape(self) -> tuple[int, int, int]:
        """(H,W,C), of the levels before they are normalised."""
        return *self.size, self.channels


IMAGENET_INPUT = InputSpec((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class LayerInfo:
    """A target layer: its module name, the layout of its output, the map's grid (h, w) and the tokens before it.

    arrangement: how the output is put into that layout, where it comes in another order.
    """

    name: str
    layout: str
    grid: tuple[int, int]
    prefix_tokens: int = 0
    arrangement: Arrangement | None = None

    @property
    def tokens(self) -> int:
        """How many tokens there are in all, of the layout "tokens"."""
        return self.prefix_tokens + self.grid[0] * self.grid[1]

    def shape(self, channels: int) -> tuple[int, ...]:
        """That of one image's activations."""
        if self.layout == "tokens":
            return self.tokens, channels
        return (channels, *self.grid) if self.layout == "nchw" else (*self.grid, channels)


@dataclass(frozen=True)
class TapsInfo:
    """What a graph of head "taps" gives, in place of the map.

    channels: C of the activations. gradients: whether it gives the gradients at every position, from which each method
    can be drawn, or the channel weights, their means over the positions. carried: of an engine with a tail file, the
    shapes, without N, of what the logits are computed from besides the activations; the outputs `carried_0` and so on.
    cut_sha256: says which tail belongs to it; None without one.
    """

    channels: int
    gradients: bool
    carried: tuple[tuple[int, ...], ...] = ()
    cut_sha256: str | None = None

    @property
    def second(self) -> str:
        """The name of the output beside the activations."""
        return GRADIENTS if self.gradients else CHANNEL_WEIGHTS

    @property
    def carried_outputs(self) -> dict[str, tuple[int, ...]]:
        """The names of the carried values, with their shapes without N."""
        return {f"carried_{index}": shape for index, shape in enumerate(self.carried)}

    @property
    def methods(self) -> tuple[str, ...]:
        """What can be drawn from these taps."""
        return tuple(name for name, needs in METHODS.items() if self.gradients or needs != "gradients")


@dataclass(frozen=True)
class ZeroShotInfo:
    """A model whose classes are an input: logits = logit_scale * z @ class_embeddings.T + logit_bias.

    z, (N,D), and class_embeddings, (K,D), have rows of length 1; embedding_dim is D. text_sha256 is the SHA-256 (hex)
    of all weights but the image tower's: embeddings that another text tower made mean nothing here.
    """

    embedding_dim: int
    logit_scale: float
    logit_bias: float
    text_sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime needs to know about an engine; see DESIGN, section 3.

    passes: what the compiler did, a line each. layer_maps: whether the raw map of each of several layers is an output
    as well. An engine of a zero-shot model has neither classes nor their number: they are given when it runs. taps: of
    head "taps", where `method` is the one that is drawn unless another is asked for.
    """

    model: ModelInfo
    input: InputSpec
    classes: tuple[str, ...] | None
    num_classes: int | None
    layers: tuple[LayerInfo, ...]
    method: str
    objective: str
    references: int
    opset: int
    contrasts: int = 1
    layer_maps: bool = False
    zero_shot: ZeroShotInfo | None = None
    head: str = "graph"
    taps: TapsInfo | None = None
    precision: str = "fp32"
    passes: tuple[str, ...] = ()
    verification: dict[str, Any] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def grid(self) -> tuple[int, int]:
        """(h,w) of the saliency map: the target layer's, or of several layers the largest of each."""
        return map_grid(self.layers)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the graph's inputs, in order."""
        return INPUTS if self.zero_shot is None else (*INPUTS, EMBEDDINGS)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the graph's outputs, in order."""
        if self.taps is None:
            return (*OUTPUTS, *self.layer_outputs)
        return (
            *(name for name in OUTPUTS if name != "saliency_map"),
            ACTIVATIONS,
            self.taps.second,
            *self.taps.carried_outputs,
        )

    @property
    def layer_outputs(self) -> dict[str, LayerInfo]:
        """The outputs that are raw maps of one layer each, by name."""
        return {f"layer_map_{index}": layer for index, layer in enumerate(self.layers) if self.layer_maps}

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON values."""
        fields = asdict(self)
        fields["input"]["channels"] = self.input.channels
        return fields

    def to_json(self) -> str:
        """The manifest as JSON text with sorted keys."""
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)


def map_grid(layers: Sequence[LayerInfo]) -> tuple[int, int]:
    """The largest height and the largest width of the layers' grids."""
    return max(layer.grid[0] for layer in layers), max(layer.grid[1] for layer in layers)


def from_json(text: str, source: str) -> Manifest:
    """Parse and check a manifest; `source` names the file in errors.

    Raises:
        EngineError: not JSON, a newer schema, a missing or unknown field, or a value this version cannot serve.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise EngineError(f"{source}: its manifest is not valid JSON; export the engine again.") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), int):
        raise EngineError(f"{source}: its manifest has no schema number; export the engine again.")
    if raw["schema"] > SCHEMA:
        raise EngineError(
            f"{source}: its manifest has schema {raw['schema']}, newer than the {SCHEMA} that this finercam_rt reads; "
            "upgrade finercam-rt."
        )
    try:
        manifest = _build(raw)
    except DAMAGE as error:
        raise EngineError(f"{source}: its manifest is damaged ({error}); export the engine again.") from None
    for name, value, known in (
        ("method", manifest.method, METHODS),
        ("objective", manifest.objective, OBJECTIVES),
        ("head", manifest.head, HEADS),
        ("precision", manifest.precision, PRECISIONS),
        ("interpolation", manifest.input.interpolation, INTERPOLATIONS),
        ("crop_mode", manifest.input.crop_mode, CROP_MODES),
        *(("layout", layer.layout, LAYOUTS) for layer in manifest.layers),
    ):
        if value not in known:
            raise EngineError(
                f"{source}: its {name} is {value!r}, and this finercam_rt runs {', '.join(known)}; upgrade finercam-rt "
                "or export the engine again."
            )
    return manifest


def _build(raw: dict[str, Any]) -> Manifest:
    model, spec = raw["model"], raw["input"]
    mean, std = (tuple(float(v) for v in spec[key]) for key in ("mean", "std"))
    channels = _count(spec["channels"])
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"mean and std must have a value for each of {channels} channels, std above zero")
    classes, num_classes, zero_shot = raw["classes"], raw["num_classes"], _zero_shot(raw["zero_shot"])
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{len(classes)} class names for {num_classes} classes")
    taps = _taps(raw.get("taps"))
    if (raw["head"] == "taps") != (taps is not None):
        raise ValueError("taps are given exactly where the head is called so")
    if (num_classes is None) != (zero_shot is not None):
        raise ValueError("the number of classes is that of the class embeddings exactly where it has none")
    return Manifest(
        model=ModelInfo(str(model["name"]), str(model["weights_sha256"])),
        input=InputSpec(
            size=_pair(spec["size"]),
            mean=mean,
            std=std,
            interpolation=str(spec["interpolation"]),
            crop_pct=_positive(spec["crop_pct"]),
            crop_mode=str(spec["crop_mode"]),
        ),
        classes=None if classes is None else tuple(str(name) for name in classes),
        num_classes=None if num_classes is None else int(num_classes),
        layers=_layers(raw["layers"]),
        method=str(raw["method"]),
        objective=str(raw["objective"]),
        references=int(raw["references"]),
        opset=int(raw["opset"]),
        contrasts=_count(raw["contrasts"]),
        layer_maps=bool(raw["layer_maps"]),
        zero_shot=zero_shot,
        head=str(raw["head"]),
        taps=taps,
        precision=str(raw["precision"]),
        passes=tuple(str(line) for line in raw["passes"]),
        verification=dict(raw["verification"]),
        producer={str(k): str(v) for k, v in raw["producer"].items()},
        schema=raw["schema"],
    )


def _layers(values: Any) -> tuple[LayerInfo, ...]:
    if not values:
        raise ValueError("no target layer")
    return tuple(
        LayerInfo(
            str(v["name"]), str(v["layout"]), _pair(v["grid"]), int(v["prefix_tokens"]), arrangement(v["arrangement"])
        )
        for v in values
    )


def _taps(value: Any) -> TapsInfo | None:
    if value is None:
        return None
    return TapsInfo(
        channels=_count(value["channels"]),
        gradients=bool(value["gradients"]),
        carried=tuple(tuple(_count(size) for size in shape) for shape in value["carried"]),
        cut_sha256=None if value["cut_sha256"] is None else str(value["cut_sha256"]),
    )


def _zero_shot(value: Any) -> ZeroShotInfo | None:
    if value is None:
        return None
    return ZeroShotInfo(
        embedding_dim=_count(value["embedding_dim"]),
        logit_scale=float(value["logit_scale"]),
        logit_bias=float(value["logit_bias"]),
        text_sha256=str(value["text_sha256"]),
    )


def _pair(values: Any) -> tuple[int, int]:
    height, width = (int(v) for v in values)
    if height < 1 or width < 1:
        raise ValueError(f"a size of {height}x{width}")
    return height, width


def _count(value: Any) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(f"{number} where a positive number is expected")
    return number


def _positive(value: Any) -> float:
    number = float(value)
    if not number > 0:
        raise ValueError(f"{number} where a positive number is expected")
    return number
