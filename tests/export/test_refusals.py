"""Every mistake at `finercam export`: one sentence that says what to do, exit code 2, and nothing written."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from finercam_rt.cli.main import main
from finercam_rt.errors import ExportError
from finercam_rt.export.refusal import check_logits, running
from finercam_rt.export.verify import verification_images

from .conftest import check_untouched

USER_MODULE = """
import torch
from torch import nn

CONSTANT = 3

class CNN(nn.Module):
    def __init__(self, classes=7):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, 8)
        self.features = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(24, classes)

    def forward(self, x):
        return self.head(self.features(self.stem(x)).mean((2, 3)))

class Branching(CNN):
    def forward(self, x):
        return super().forward(x * 2 if x.sum() > 0 else x)

class FixedBatch(CNN):
    def forward(self, x):
        return super().forward(x.reshape(2, 3, *x.shape[2:]))

class SeveralLogits(CNN):
    def forward(self, x):
        return super().forward(x), super().forward(x) * 2

class Metadata(CNN):
    def forward(self, x, metadata):
        return super().forward(x) + metadata

class Dense(CNN):
    def forward(self, x):
        return self.features(self.stem(x))

class Layers(CNN):
    def __init__(self):
        super().__init__()
        self.twice, self.never, self.several = nn.ReLU(), nn.ReLU(), Several()

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.features(self.several(self.twice(self.twice(x)))[1]).mean((2, 3)))

class Several(nn.Module):
    def forward(self, x):
        return [x], x

class FixedSize(CNN):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 24, 6, 8))

    def forward(self, x):
        return self.head(self.features(self.stem(x) + self.position).mean((2, 3)))

class Blind(CNN):
    def forward(self, x):
        return super().forward(1e-12 * x)

class Training(CNN):
    pass

def broken_weights():
    model = CNN().eval()
    nn.init.constant_(model.head.weight, float("nan"))
    return model

def good(): return CNN().eval()
def branching(): return Branching().eval()
def fixed_batch(): return FixedBatch().eval()
def several_logits(): return SeveralLogits().eval()
def metadata(): return Metadata().eval()
def dense(): return Dense().eval()
def layers(): return Layers().eval()
def blind(): return Blind().eval()
def fixed_size(): return FixedSize().eval()
def one_class(): return CNN(1).eval()
def training(): return CNN()
def text(): return "a model"
def failing(): raise RuntimeError("the weights server is down\\nand this is the second line")
"""

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def user_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A user's module, importable as refused_user_models."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "refused_user_models.py").write_text(USER_MODULE)
    (folder / "refused_syntax.py").write_text("def load(:\n")
    (folder / "refused_division.py").write_text("1 / 0\n")
    sys.path.insert(0, str(folder))
    yield "refused_user_models"
    sys.path.remove(str(folder))
    sys.modules.pop("refused_user_models", None)


@pytest.fixture
def refused(output: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `finercam export` and returns its one sentence, after checking everything that must hold for all of them."""

    def run(*arguments: Any, to: Path | None = None) -> str:
        code = main(["export", *map(str, arguments), "-o", str(output if to is None else to)])
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        lines = [line for line in captured.err.splitlines() if not line.startswith("exporting: ")]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("finercam: ")
        assert lines[0].endswith((".", "?"))
        check_untouched(output)
        return lines[0]

    return run


def _matches(sentence: str, *parts: str) -> None:
    for part in parts:
        assert part in sentence, sentence


@pytest.mark.parametrize(
    ("specification", "parts"),
    [
        ("timm:resnet81", ("timm has no model 'resnet81'", "nearest are resnet18")),
        ("timm:zzzzzz", ("timm has no model 'zzzzzz'",)),
        ("torchvision:resnet81", ("torchvision has no model 'resnet81'", "nearest are resnet18")),
        ("torchvision:r3d_18", ("torchvision's 'r3d_18' is a model of video", "image classifier")),
        ("torchvision:lraspp_mobilenet_v3_large", ("is a model of segmentation",)),
        ("torchvision:ssd300_vgg16", ("is a model of detection",)),
        ("keras:resnet18", ("'keras:resnet18' is not a model specification", "timm:NAME", "py:PACKAGE")),
        ("resnet18", ("'resnet18' is not a model specification", "timm:NAME")),
        ("timm:", ("'timm:' is not a model specification",)),
        ("py:{module}:god", ("refused_user_models has no 'god'", "nearest is good")),
        ("py:{module}", ("names no callable",)),
        ("py:{module}:CONSTANT", ("CONSTANT is not callable",)),
        ("py:no_such_module_here:load", ("no_such_module_here cannot be imported", "in this folder, or installed")),
        ("py:.relative:load", ("'py:.relative:load' names no callable",)),
        ("py:refused_syntax:load", ("refused_syntax cannot be imported (SyntaxError: ", "correct what fails")),
        ("py:refused_division:load", ("refused_division cannot be imported (ZeroDivisionError: ",)),
        ("py:{module}:text", ("text gave a str; it must give a torch.nn.Module",)),
        ("py:{module}:failing", ("cannot be built", "the weights server is down")),
    ],
)
def test_specifications(refused: Refused, user_module: str, specification: str, parts: tuple[str, ...]) -> None:
    weights = [] if specification.startswith("py:") else ["--random-weights"]
    _matches(refused(specification.format(module=user_module), *weights), *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("torchvision:squeezenet1_1", "--input-size", "8"), ("does not run on", "give the input size that it takes")),
        (("timm:test_resnet", "--num-classes", "0"), ("the number of classes is 0", "at least two")),
        (("timm:test_resnet", "--num-classes", "-3"), ("the number of classes is -3",)),
        (("timm:test_resnet", "--num-classes", "1"), ("the model has one class",)),
    ],
)
def test_sizes_and_classes_that_no_model_takes(
    refused: Refused, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    _matches(refused(*arguments, "--random-weights"), *parts)


@pytest.mark.parametrize("specification", ["timm:test_resnet", "torchvision:resnet18"])
def test_no_weights_asked_for(refused: Refused, specification: str) -> None:
    _matches(refused(specification), "has no weights yet", "--checkpoint FILE", "--pretrained", "--random-weights")


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def _checkpoints(folder: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """File and words of the refusal, by what is wrong with it."""
    model = timm.create_model("test_resnet", num_classes=12)
    state = model.state_dict()
    good = folder / "good.pth"
    torch.save(state, good)
    cases: dict[str, tuple[Any, tuple[str, ...]]] = {
        "empty.pth": (b"", ("the checkpoint cannot be read",)),
        "text.pth": (b"these are no weights\n" * 50, ("not a checkpoint",)),
        "memo.pth": (b"\x80\x02hi.", ("not a checkpoint (KeyError: 105)",)),
        "truncated.pth": (good.read_bytes()[:-4000], ("the checkpoint cannot be read",)),
        "flipped.safetensors": (b"\xff" * 64, ("not a checkpoint", "header")),
        "whole-model.pth": (model, ("not a checkpoint of tensors alone", "model.state_dict()")),
        "list.pth": ([1, 2, 3], ("holds no state dict of tensors",)),
        "numbers.pth": ({"epoch": 3, "loss": 0.5}, ("holds no state dict of tensors",)),
        "nothing.pth": ({}, ("holds no state dict of tensors",)),
        "pickle.pth": (pickle.dumps({"a": 1}), ("checkpoint",)),
        "other.pth": (timm.create_model("test_vit").state_dict(), ("belongs to another architecture", "missing")),
        "wider.pth": (
            {k: torch.cat([v, v]) if k == "layer1.0.bn1.weight" else v for k, v in state.items()},
            ("weight 'layer1.0.bn1.weight' has shape",),
        ),
        "script.pth": (_script(), ("a program of TorchScript", "model.state_dict()")),
        "adapter.pth": (
            {"base_model.model.conv1.lora_A.default.weight": torch.zeros(4, 3), **state},
            ("an adapter that is not merged", "'base_model.model.conv1.lora_A.default.weight'", "merge_and_unload()"),
        ),
        "parts.pth": (
            {(f"head.{k}" if k.startswith("fc") else f"backbone.{k}"): v for k, v in state.items()},
            ("has the model's weights under 'backbone.', but for 'fc.weight' and 1 more",),
        ),
        "beside.pth": (
            {(f"head.{k}" if k.startswith("fc") else k): v for k, v in state.items()},
            ("belongs to another architecture (2 weights missing, 2 unexpected, first missing 'fc.weight')",),
        ),
    }
    made = {}
    for name, (content, parts) in cases.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        made[name] = path, parts
    made["missing.pth"] = folder / "missing.pth", ("no such checkpoint file",)
    made["folder.pth"] = folder, ("no such checkpoint file",)
    return made


def test_checkpoints(refused: Refused, tmp_path: Path) -> None:
    for path, parts in _checkpoints(tmp_path).values():
        _matches(refused("timm:test_resnet", "--checkpoint", path), str(path), *parts)
    good = tmp_path / "good.pth"
    sentence = refused("timm:test_resnet", "--checkpoint", good, "--num-classes", "9")
    _matches(sentence, "has shape (12, ", "the model's has (9, ", "num_classes")


@pytest.mark.parametrize(
    ("function", "arguments", "parts"),
    [
        ("good", ["--target-layer", "featurs"], ("no layer 'featurs'", "nearest are 'features'")),
        ("good", ["--target-layer", "head"], ("'head'", "(2, 7), is not a feature map")),
        ("layers", ["--target-layer", "twice"], ("'twice' runs 2 times",)),
        ("layers", ["--target-layer", "never"], ("'never' runs 0 times",)),
        ("layers", ["--target-layer", "several"], ("'several' gives a tuple whose first value is a list",)),
        (
            "good",
            ["--target-layer", "features", "--layout", "tokens"],
            ("is not what the layout", "nchw with a 6x8 grid"),
        ),
        (
            "good",
            ["--target-layer", "features", "--grid", "5", "5"],
            ("is not what the layout", "nchw with a 6x8 grid"),
        ),
        ("branching", [], ("torch.export cannot capture the model", "data-dependent")),
        ("several_logits", [], ("'0' (2, 7), '1' (2, 7)", "--logits NAME")),
        ("several_logits", ["--logits", "2"], ("no output '2'",)),
        ("metadata", [], ("input 'metadata'", "--input metadata=VALUE")),
        ("good", ["--input", "metadata"], ("'metadata' is not NAME=VALUE",)),
        ("good", ["--input", "metadata=3"], ("no input 'metadata'; it has 'x'",)),
        ("dense", [], ("must return logits (N,K)", "(2, 24, 6, 8)")),
        (
            "fixed_size",
            ["--input-size", "96", "96"],
            ("does not run on an input of shape (2, 3, 96, 96)", "input size"),
        ),
        ("one_class", [], ("the model has one class", "give --binary")),
        ("good", ["--binary"], ("has 7 logits", "leave --binary out")),
        ("training", [], ("training mode", ".eval()")),
        ("broken_weights", [], ("not finite",)),
        ("blind", [], ("the same for different images", "trained")),
        ("good", ["--opset", "17"], ("opset 17 is not supported", "18, 19, 20")),
        ("good", ["--opset", "23"], ("opset 23 is not supported",)),
        ("good", ["--references", "0"], ("references is 0", "at least 1")),
        ("good", ["--references", "-2"], ("references is -2",)),
        (
            "good",
            ["--references", "7"],
            ("references is 7", "has 7 classes, 6 of them beside", "give 1 to 6, or leave"),
        ),
        ("one_class", ["--binary", "--references", "2"], ("has 2 classes", "give 1, or leave it out")),
        ("good", ["--input-size", "0"], ("0 is not a size",)),
        ("good", ["--input-size", "1", "2", "3"], ("1 2 3 is not a size",)),
        ("good", ["--std", "0.2", "0", "0.2"], ("--std", "above zero")),
        ("good", ["--std", "0.2", "nan", "0.2"], ("--std",)),
        ("good", ["--mean", "0.2", "nan", "0.2"], ("--mean",)),
        ("good", ["--crop-pct", "0"], ("--crop-pct is 0",)),
        ("good", ["--crop-pct", "1.5"], ("--crop-pct is 1.5",)),
        ("good", ["--model-arg", "classes"], ("'classes' is not NAME=VALUE",)),
        ("good", ["--model-arg", "no_such=3"], ("cannot be built", "no_such")),
    ],
)
def test_models_and_options(
    refused: Refused, user_module: str, function: str, arguments: list[str], parts: tuple[str, ...]
) -> None:
    size = [] if "--input-size" in arguments else ["--input-size", "48", "64"]
    _matches(refused(f"py:{user_module}:{function}", *size, *arguments), *parts)


def test_images_that_do_not_fit_into_memory() -> None:
    with pytest.raises(ExportError, match=r"^images of 10000000 x 10000000 pixels do not fit into memory; give a sma"):
        verification_images((3, 10**7, 10**7))


def test_models_that_do_not_fit_into_memory(refused: Refused) -> None:
    sentence = refused("timm:test_resnet", "--random-weights", "--num-classes", str(10**12))
    _matches(sentence, "timm:test_resnet does not fit into memory, of which it asked for", " GB at once; give smaller")
    with (
        pytest.raises(
            ExportError, match=r"\(there is too little memory for 4000000.0 GB at once\); give a smaller input"
        ),
        running("the model", torch.zeros(1)),
    ):
        torch.empty(10**15)


def test_images_that_are_all_the_same_say_nothing_of_a_model() -> None:
    images = torch.arange(24.0).square().reshape(2, 3, 2, 2)
    check_logits(torch.nn.Flatten(), images)
    check_logits(torch.nn.Flatten(), images[:1].repeat(2, 1, 1, 1))
    with pytest.raises(ExportError, match="trained"):
        check_logits(torch.nn.Flatten(), 1 + 1e-9 * images.double())
    with pytest.raises(ExportError, match="same for different"):  # numbers that are nearly zero
        check_logits(torch.nn.Flatten(), 1e-41 * images)


def test_a_fixed_batch_is_refused_or_kept_dynamic(refused: Refused, user_module: str) -> None:
    sentence = refused(f"py:{user_module}:fixed_batch", "--input-size", "48", "64")
    _matches(sentence, "torch.export cannot capture the model with a dynamic batch")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--objective", "median"],
        ["--layout", "hwc"],
        ["--method", "scorecam"],
        ["--interpolation", "cubic"],
        ["--opset", "twenty"],
        ["--pretrained", "--random-weights"],
        ["--no-such-option"],
    ],
)
def test_what_the_parser_refuses(output: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", "timm:test_resnet", "-o", str(output), *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    check_untouched(output)


def test_zero_gradient_at_the_last_block_of_a_vit(refused: Refused) -> None:
    """The design's own example: behind the last block a CLS head reads no patch token."""
    arguments = ["--random-weights", "--target-layer", "blocks.11", "--model-arg", "depth=12"]
    sentence = refused("timm:vit_tiny_patch16_224", *arguments)
    _matches(sentence, "gradient at layer 'blocks.11' is zero", "such as 'blocks.11.norm1'")


def test_class_names(refused: Refused, user_module: str, tmp_path: Path) -> None:
    model = (f"py:{user_module}:good", "--input-size", "48", "64", "--classes")
    few, latin = tmp_path / "few.txt", tmp_path / "latin.txt"
    few.write_text("a\nb\nc\n")
    latin.write_bytes("Vögel\n".encode("latin-1") * 7)
    _matches(refused(*model, few), "3 class names were given for a model of 7 classes")
    _matches(refused(*model, latin), str(latin), "not UTF-8")
    _matches(refused(*model, tmp_path / "none.txt"), "none.txt: the class names cannot be read (No such file")
    _matches(refused(*model, tmp_path), "the class names cannot be read (Is a directory")


def test_where_nothing_can_be_written(refused: Refused, user_module: str, output: Path, tmp_path: Path) -> None:
    """Refused before any work, and for root as well, whom permission bits do not stop."""
    model = (f"py:{user_module}:good", "--input-size", "48", "64")
    file = tmp_path / "file.txt"
    file.write_text("not a folder")
    _matches(refused(*model, to=output.parent), "is a folder", "name of the file")
    _matches(refused(*model, to=tmp_path / "none" / "x.onnx"), "none does not exist", "make it first")
    _matches(refused(*model, to=file / "x.onnx"), "file.txt", "folder")
    assert file.read_text() == "not a folder"
    if Path("/proc/self").is_dir():
        _matches(refused(*model, to=Path("/proc/x.onnx")), "/proc cannot be written")
