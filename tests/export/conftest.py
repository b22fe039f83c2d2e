"""Models of every supported family, exported once in a session and shared by all tests of the export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finercam_rt.engine import Engine
from finercam_rt.manifest import LayerInfo, Manifest

torch: Any = pytest.importorskip("torch", reason="the export needs PyTorch")
timm: Any = pytest.importorskip("timm", reason="the export's models come from timm")
pytest.importorskip("onnx", reason="the export needs onnx")

ARGUMENTS: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"pad_type": "same"},
    "vit_small_patch14_dinov2": {"img_size": 224, "num_classes": 47},
}


@dataclass(frozen=True)
class Exported:
    """A model, the engine made from it, and what the export said about it."""

    model: Any
    path: Path
    engine: Engine
    manifest: Manifest

    @property
    def layer(self) -> LayerInfo:
        return self.manifest.layers[0]

    def oracle(self, images: Any) -> Any:
        from .oracle import Oracle

        return Oracle(self.model, self.layer.name, images, self.layer.prefix_tokens)

    def reshape(self) -> Callable[[Any], Any] | None:
        """The reshape_transform that the public libraries need for this layout: to (N,C,h,w)."""
        layer = self.layer
        if layer.layout == "nchw":
            return None
        if layer.layout == "nhwc":
            return lambda t: t.permute(0, 3, 1, 2)
        return lambda t: t[:, layer.prefix_tokens :].reshape(len(t), *layer.grid, -1).permute(0, 3, 1, 2)


ExportedFactory = Callable[..., Exported]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportedFactory]:
    """`exported("resnet18", "weighted")`: a timm model with seeded, perturbed weights, exported once."""
    from finercam_rt.export import export_model

    from .oracle import perturb

    folder = tmp_path_factory.mktemp("engines")
    made: dict[tuple[str, str], Exported] = {}

    def export(name: str, objective: str) -> Exported:
        key = name, objective
        if key not in made:
            torch.manual_seed(0)
            model = perturb(timm.create_model(name, **ARGUMENTS.get(name, {})))
            path = folder / f"{name}-{objective}.onnx"
            manifest = export_model(model, path, objective=objective)
            made[key] = Exported(model, path, Engine(path, threads=2), manifest)
        return made[key]

    yield export
    for item in made.values():
        item.engine.close()


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Real photographs out of installed wheels: two of scikit-image, twenty labelled ones of foolbox."""
    import importlib.util

    found = []
    for package, pattern in (("skimage", "data/c[ho][ef]*e*.png"), ("foolbox", "data/imagenet_*.jpg")):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            pytest.skip(f"the package {package} with its photographs is not installed")
        found += sorted(Path(spec.origin).parent.glob(pattern))
    assert len(found) == 22, found
    return found
