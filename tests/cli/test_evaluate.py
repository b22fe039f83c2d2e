"""`finercam evaluate`: what it writes and prints, and what it says of mistakes."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib", reason="the report is drawn with it")
pytest.importorskip("jinja2", reason="the report is made with it")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Nine photographs of three classes; a broken one, one of an unknown class, and one that is all one colour."""
    rng = np.random.default_rng(5)
    for k in range(9):
        path = tmp_path / "birds" / ("magpie", "kite", "linnet")[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((60, 40), Image.Resampling.BICUBIC).save(path)
    (tmp_path / "birds" / "kite" / "broken.png").write_text("no image")
    (tmp_path / "birds" / "dodo").mkdir()
    for name in ("dodo/x.png", "kite/flat.png"):
        Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "birds" / name)
    return tmp_path / "birds"


class _Page(HTMLParser):
    """The tags of a page, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.alternatives: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        if tag in ("img", "svg"):
            self.alternatives.append(dict(attributes).get("alt" if tag == "img" else "aria-label") or "")
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "data")]

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_what_is_written_and_printed(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    toy, out = make_toy(), tmp_path / "out"
    seeds = ("plain", "one:1", "weighted3:1")
    metrics = ("rd@10", "deletion", "insertion")
    ran = finercam("evaluate", toy.path, "--data", birds, "--seeds", *seeds, "--metrics", *metrics, "-o", out)
    assert ran.code == 1  # images were left out
    assert "gradcam weighted3:1" in ran.out
    assert "By rd@10, " in ran.out
    assert "1 unknown class; the first is dodo/x.png" in ran.err
    assert "1 unreadable; the first is kite/broken.png" in ran.err
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "results.csv", "results.json"]

    document = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in document["rows"]] == [f"gradcam {seed}" for seed in seeds]
    assert document["run"]["command"].startswith("finercam evaluate toy.onnx --data birds --seeds plain")
    assert document["images_asked"] == 12
    assert document["images_measured"] == 10
    assert document["left_out"]["counts"] == {"unknown class": 1, "unreadable": 1}
    assert [image["image"] for image in document["images"] if image.get("measured") is False] == ["kite/broken.png"]
    for row in document["rows"]:
        values = [
            image["rows"][row["name"]]["rd@10"]
            for image in document["images"]
            if "rows" in image and image["rows"][row["name"]]["rd@10"] is not None
        ]
        summary = row["summary"]["rd@10"]
        assert summary["images"] == len(values) == row["maps"]["ok"]
        assert summary["mean"] == pytest.approx(np.mean(values))
        assert summary["low"] <= summary["mean"] <= summary["high"]
        curve = row["curves"]["deletion"]
        area = np.trapezoid(curve["mean"], curve["share"])
        assert row["summary"]["deletion"]["mean"] == pytest.approx(area, abs=1e-6)
        assert row["curves"].keys() == {"deletion", "insertion", "confidence_drop", "relative_drop"}
    assert document["recommendation"]["row"] in {row["name"] for row in document["rows"]}

    with (out / "results.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(line["row"], line["metric"]) for line in table] == [
        (f"gradcam {seed}", metric) for seed in seeds for metric in metrics
    ]
    assert float(table[0]["mean"]) == pytest.approx(document["rows"][0]["summary"]["rd@10"]["mean"])


def test_the_report_is_one_page_that_needs_nothing_else(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    toy, out = make_toy(), tmp_path / "out"
    asked = ("--seeds", "plain", "one:1", "--metrics", "rd@5", "rd@10", "deletion", "--steps", "10")
    assert finercam("evaluate", toy.path, "--data", birds, *asked, "-o", out).code == 1
    text = (out / "report.html").read_text()
    page = _Page(text)
    assert page.references
    assert all(reference.startswith(("data:image/jpeg;base64,", "#")) for reference in page.references)
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)  # names of namespaces, which are not fetched
    assert "@import" not in text
    assert "<script" not in text
    assert str(tmp_path) not in text
    assert "/tmp" not in text
    assert page.open == []
    # the table with its best figures, the curves, a photograph and two maps of each of eight images, what was left out
    assert page.tags.count("tr") == 3
    assert "★" in text
    for title in ("Deletion", "Relative confidence drop", "Confidence drop", "Best images", "Worst images"):
        assert f">{title}<" in text
    assert page.tags.count("img") == 3 * 8
    assert len(page.alternatives) == page.tags.count("img") + page.tags.count("svg")
    assert all(len(text) > 15 for text in page.alternatives)
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"#(1f2933|e4e7eb|52606d)\b", text.partition("</style>")[2])  # the page's colours by name
    for column, says in (
        ("rd@10", "where the 10 % most salient pixels are removed, beyond"),
        ("deletion", "area under"),
    ):
        assert re.search(rf"<dt>{column}</dt><dd>[^<]*{says}[^<]*is better</dd>", text)
    assert ">rd@5 against time<" in text
    assert "dodo/x.png" in text
    assert "kite/broken.png" in text
    assert "explain nothing" in text
    assert re.search(
        r"<summary>gradcam plain: \d+ (constant|no_positive_evidence)</summary><p[^>]*>[^<]*kite/flat.png", text
    )
    engine = json.loads((out / "results.json").read_text())["produced"]["engines"][0]
    assert engine["sha256"] in text
    assert "finercam-rt 0." in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', text):
        assert reference in ids


def test_names_of_files_are_text_in_the_report(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    (birds / "kite" / "1.png").rename(birds / "kite" / "<b>&1.png")
    (birds / "kite" / "broken.png").rename(birds / "kite" / "<script>.png")
    out = tmp_path / "out"
    assert finercam("evaluate", make_toy().path, "--data", birds, "-o", out).code == 1
    text = (out / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;.png" in text


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="names of files are text there")
def test_names_that_are_not_text(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    """Of images that were measured, of one that was not, and of the data."""
    odd = tmp_path / os.fsdecode(b"v\xf6gel")
    birds.rename(odd)
    measured, broken = (odd / "kite" / os.fsdecode(name) for name in (b"1\xe9.png", b"broken\xe9.png"))
    (odd / "kite" / "1.png").rename(measured)
    (odd / "kite" / "broken.png").rename(broken)
    out = tmp_path / "out"
    ran = finercam("evaluate", make_toy().path, "--data", odd, "--metrics", "rd@10", "-o", out, "--json")
    assert ran.code == 1
    assert "broken\\udce9.png" in ran.err
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    images = {image["image"]: image for image in document["images"]}
    assert "rows" in images[str(measured.relative_to(odd))]
    assert images[str(broken.relative_to(odd))]["measured"] is False
    assert document["rows"] == json.loads(ran.out)["rows"]
    assert "broken\\udce9.png" in (out / "report.html").read_text(encoding="utf-8")
    with (out / "results.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == len(document["rows"])


def test_json_is_what_the_file_holds_but_for_the_images(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    toy, out = make_toy(), tmp_path / "out"
    ran = finercam("evaluate", toy.path, "--data", birds, "--metrics", "rd@10", "-o", out, "--json")
    written = json.loads((out / "results.json").read_text())
    del written["images"]
    assert json.loads(ran.out) == written


def test_no_image_left_out_is_exit_code_0(
    finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path
) -> None:
    (birds / "kite" / "broken.png").unlink()
    labels = tmp_path / "labels.csv"
    labels.write_text("dodo,indigo bunting\n")
    ran = finercam(
        "evaluate", make_toy().path, "--data", birds, "--labels", labels, "--rank-by", "cd@10",
        "--metrics", "rd@10", "cd@10", "-o", tmp_path / "out", "--limit", 1,
    )  # fmt: skip
    assert ran.code == 0
    assert ran.err == ""
    assert "\n1 image in " in ran.out
    assert "By cd@10, " in ran.out


def test_mistakes(finercam: Callable[..., Any], make_toy: Callable[..., Any], birds: Path, tmp_path: Path) -> None:
    toy, out = make_toy(), tmp_path / "out"

    def run(*arguments: object) -> Any:
        return finercam("evaluate", toy.path, "--data", birds, "-o", out, *arguments)

    run("--methods", "layercm").refused("the nearest is 'layercam'")
    run("--methods", "scorecam").refused("--head taps")
    run("--seeds", "mean3:1").refused("its objective is weighted")
    run("--metrics", "rd5").refused("no metric 'rd5'")
    run("--metrics", "rd@5", "--rank-by", "deletion").refused("'deletion' is not measured")
    run("--fill", "grey").refused("use one of zero, blur, mean")
    run("--limit", "0").refused("the limit is 0")
    run("--labels", tmp_path / "none").refused("no such file")
    run("--threads", "0").refused("number of threads is 0; give 1 to 1024")
    run("--threads", "5000").refused("number of threads is 5000; give 1 to 1024")
    run("--channels", "0").refused("number of channels is 0")
    run("--target", "label", "--unlabelled").refused("leave one of them out")
    finercam("evaluate", tmp_path / "none.onnx", "--data", birds, "-o", out).refused("no such file")
    finercam("evaluate", toy.path, "--data", tmp_path / "none", "-o", out).refused("no such file or folder")
    finercam("evaluate", toy.path, "--data", birds, "-o", toy.path).refused("is a file")
    assert not out.exists()
