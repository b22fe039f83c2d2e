"""The commands on an engine whose classes are an input, and what embed-text refuses before it loads anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finercam_rt import ClassEmbeddings
from finercam_rt.cli.embed_text import read_templates
from finercam_rt.errors import InputError

NAMES = ("magpie", "jay", "crane", "kite", "red epaulets", "bird", "finch")


@pytest.fixture
def zero_shot(make_toy: Callable[..., Any]) -> Any:
    return make_toy("zero.onnx", zero_shot=True)


@pytest.fixture
def classes(zero_shot: Any, tmp_path: Path) -> Path:
    path = tmp_path / "birds.npz"
    ClassEmbeddings(zero_shot.weight, NAMES, text_sha256="1" * 64, model="toy").save(path)
    return path


def test_explain(zero_shot: Any, classes: Path, photographs: Path, tmp_path: Path, finercam: Callable) -> None:
    arguments = ["explain", zero_shot.path, photographs / "b.png", "-o", tmp_path / "out"]
    done = finercam(*arguments, "--class-embeddings", classes, "--target", "red epaulets", "--references", "bird")
    assert done.code == 0, done
    assert "explained red epaulets" in done.out
    assert ", against bird " in done.out
    document = json.loads((tmp_path / "out" / "explanations.json").read_text())
    assert document["engine"]["class_embeddings"] == str(classes)
    assert document["images"][0]["target"]["name"] == "red epaulets"
    finercam(*arguments).refused("finercam embed-text", "--class-embeddings")
    finercam(*arguments, "--target", "bird").refused("finercam embed-text")
    finercam(*arguments, "--class-embeddings", photographs / "notes.txt").refused("holds no class embeddings")


def test_compare(zero_shot: Any, classes: Path, photographs: Path, finercam: Callable) -> None:
    arguments = ["compare", zero_shot.path, zero_shot.path, "--images", photographs]
    done = finercam(*arguments, "--class-embeddings", classes)
    assert done.code == 0, done
    assert "class agreement  100.0 %" in done.out
    finercam(*arguments).refused("finercam embed-text")


def test_bench(zero_shot: Any, classes: Path, finercam: Callable) -> None:
    arguments = ["bench", zero_shot.path, "--duration", 0, "--warmup-ms", 0, "--iterations", 1, "--json"]
    assert json.loads(finercam(*arguments).out)["engine"]["classes"] == 1000
    assert json.loads(finercam(*arguments, "--class-embeddings", classes).out)["engine"]["classes"] == 7


def test_inspect(zero_shot: Any, finercam: Callable) -> None:
    done = finercam("inspect", zero_shot.path)
    assert done.code == 0
    assert "given when it runs, embeddings of 6 numbers; logit scale 1, bias 0" in done.out
    finercam("inspect", zero_shot.path, "--classes").refused("whose classes are given when it runs")


def test_classes_for_an_engine_that_has_its_own(toy: Any, classes: Path, photographs: Path, finercam: Callable) -> None:
    for arguments in (
        ["explain", toy.path, photographs, "--json"],
        ["compare", toy.path, toy.path, "--images", photographs],
        ["bench", toy.path],
    ):
        finercam(*arguments, "--class-embeddings", classes).refused("7 fixed classes", "leave class embeddings out")


def test_templates(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a drawing of a {}.\n\n{} in a tree\n")
    assert read_templates(["photo", "{}, a bird", str(file)]) == (
        "a photo of a {}.",
        "{}, a bird",
        "a drawing of a {}.",
        "{} in a tree",
    )
    assert read_templates(["origami"]) == ("a clean origami {}.",)
    file.write_text("\n")
    for value, says in ((str(file), "is empty"), ("phto", "'phto' is no template"), (str(tmp_path), "is no template")):
        with pytest.raises(InputError) as caught:
            read_templates([value])
        assert says in str(caught.value)


def test_the_templates_of_open_clip() -> None:
    pytest.importorskip("open_clip", reason="the templates come with open_clip")
    for preset, count in (("simple", 7), ("imagenet", 80)):
        templates = read_templates([preset])
        assert len(templates) == count
        assert all(template.count("{}") == 1 for template in templates)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing to embed"),
        (["--prompts", "a", "b", "--tokenizer", "missing"], "missing is not a folder"),
        (["--class-names", "missing.txt"], "the class names cannot be read"),
        (["--prompts", "a", "b", "--templates", "quux"], "'quux' is no template"),
        (["--prompts", "a", "b", "-o", "missing/birds.npz"], "cannot be written"),
    ],
)
def test_embed_text_refuses(arguments: list[str], says: str, tmp_path: Path, finercam: Callable) -> None:
    output = [] if "-o" in arguments else ["-o", tmp_path / "birds.npz"]
    finercam("embed-text", "open_clip:ViT-B-32", *arguments, *output).refused(says)
    assert not list(tmp_path.iterdir())


def test_embed_text_needs_pytorch(tmp_path: Path, finercam: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "finercam_rt.export", None)
    done = finercam("embed-text", "open_clip:ViT-B-32", "--prompts", "a", "b", "-o", tmp_path / "birds.npz")
    done.refused("finercam-rt[export]")


def test_evaluate_says_which_prompts(zero_shot: Any, photographs: Path, tmp_path: Path, finercam: Callable) -> None:
    """They decide every figure: an evaluation of other ones is another question."""
    said = []
    for count in (len(NAMES) - 1, len(NAMES)):
        path = tmp_path / f"{count}.npz"
        ClassEmbeddings(zero_shot.weight[:count], NAMES[:count], text_sha256="1" * 64, model="toy").save(path)
        out = tmp_path / str(count)
        arguments = ["evaluate", zero_shot.path, "--data", photographs, "--unlabelled", "--class-embeddings", path]
        assert finercam(*arguments, "-o", out, "--metrics", "rd@5").code == 0
        said.append(json.loads((out / "results.json").read_text())["produced"]["class embeddings"])
    assert [len(of["names"]) for of in said] == [len(NAMES) - 1, len(NAMES)]
    assert said[0]["sha256"] != said[1]["sha256"]
