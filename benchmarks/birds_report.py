"""Turn the result file of birds.py into docs/paper-table.md and docs/paper-table.png."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from birds import BIRDS, SEEDS, check
from comparison.script import RESULTS, make_parser, read_document, refuse, write_text
from matplotlib.figure import Figure

from finercam_rt.files import atomic_write

DOCS = Path(__file__).resolve().parents[1] / "docs"
METHODS = {"gradcam": "Grad-CAM", "layercam": "Layer-CAM", "scorecam": "Score-CAM"}
COLUMNS = {"rd@5": "RD@5", "rd@10": "RD@10", "deletion": "deletion", "grid_pointing_game": "grid pointing game"}
MODELS = {"mobilenetv2": "MobileNetV2, layer `bn2`", "dinov2_small": "ViT-S/14 (DINOv2), layer `blocks.11.norm1`"}
REFERENCE: Mapping[str, Mapping[tuple[str, str], tuple[float, float]]] = {
    "mobilenetv2": {
        ("gradcam", "plain"): (0.1113, 0.2535),
        ("gradcam", "mean3:0.6"): (0.1254, 0.2675),
        ("gradcam", "mean3:1"): (0.1418, 0.2851),
        ("gradcam", "weighted3:1"): (0.1451, 0.2993),
        ("gradcam", "one:0.6"): (0.1393, 0.2699),
        ("gradcam", "one:1"): (0.1536, 0.3043),
        ("layercam", "plain"): (0.1015, 0.2534),
        ("layercam", "one:1"): (0.1128, 0.2557),
    },
    "dinov2_small": {
        ("gradcam", "plain"): (0.1446, 0.2551),
        ("gradcam", "mean3:0.6"): (0.1334, 0.2507),
        ("gradcam", "mean3:1"): (0.1330, 0.2465),
        ("gradcam", "weighted3:1"): (0.1382, 0.2492),
        ("gradcam", "one:0.6"): (0.1456, 0.2523),
        ("gradcam", "one:1"): (0.1419, 0.2469),
        ("layercam", "plain"): (0.2925, 0.4776),
        ("layercam", "mean3:0.6"): (0.3021, 0.4770),
        ("layercam", "mean3:1"): (0.3010, 0.4755),
        ("layercam", "weighted3:1"): (0.3010, 0.4789),
        ("layercam", "one:0.6"): (0.2987, 0.4772),
        ("layercam", "one:1"): (0.2878, 0.4712),
    },
}
"""RD@5 and RD@10 of plain PyTorch, batch 1, over the same 235 photographs, computed apart."""
_COLOURS = {"gradcam": "#1b6ca8", "layercam": "#c0503a"}


def main(argv: list[str] | None = None) -> int:
    """0: done. 2: a result file that cannot be read."""
    parser = make_parser("birds_report.py", __doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS / "birds.json", metavar="FILE")
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER", help="(default: docs)")
    args = parser.parse_args(argv)
    try:
        document = read_document(args.results, check)
        write_text(markdown(document), args.docs / "paper-table.md")
    except ValueError as error:
        return refuse("birds_report.py", error)
    draw(document, args.docs / "paper-table.png")
    print(f"written: {args.docs}/paper-table.md, {args.docs}/paper-table.png")
    return 0


def markdown(document: Mapping[str, Any]) -> str:
    """The page."""
    lines = [_INTRODUCTION]
    for bird in BIRDS:
        parts = {name: document["parts"].get(f"{bird.name}-{name}") for name in ("rd", "shape", "sweep")}
        lines += [f"## {MODELS[bird.name]}", ""]
        for name, title in (("rd", _RD), ("shape", _SHAPE)):
            part = parts[name]
            if part is None:
                continue
            channels = part["asked"]["channels"]
            scored = any(row["method"] == "scorecam" for row in part["rows"])
            which = f"the {channels} channels that vary most" if channels else "all channels"
            note = f", Score-CAM with {which}" if scored else ""
            lines += [title.format(images=part["images_measured"], steps=_steps(part)) + note + ":", ""]
            lines += [*_table(part), ""]
            # of a few photographs it would be another, and within noise
            lines += [f"Recommendation: {_sentence(part)}", ""] if name == "rd" else []
        if parts["rd"] is not None:
            lines += [*_against_reference(bird.name, parts["rd"]), ""]
            lines += [_TIES, ""] if bird.name == "dinov2_small" else []
        if parts["sweep"] is not None:
            lines += ["Alpha of one reference:", "", *_sweep_table(parts["sweep"]), ""]
    lines += ["![RD over alpha](paper-table.png)", "", _END]
    return "\n".join(lines)


def _table(part: Mapping[str, Any]) -> Iterator[str]:
    columns = [column for column in COLUMNS if column in part["columns"]]
    heads = [f"{COLUMNS[c]} | difference" for c in columns]
    yield f"| | {' | '.join(heads)} |"
    yield f"|---|{'---|' * (2 * len(columns))}"
    for row in _ordered(part["rows"]):
        cells = []
        for column in columns:
            cells.append(_interval(row["summary"][column]))
            baseline = row["name"] == part["baseline"]
            cells.append("" if baseline else _difference(row["difference"][column]))
        yield f"| {METHODS[row['method']]}, {row['seed']['name']} | {' | '.join(cells)} |"


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    methods = list(METHODS)
    return sorted(rows, key=lambda row: (methods.index(row["method"]), SEEDS.index(row["seed"]["name"])))


def _interval(of: Mapping[str, Any]) -> str:
    return f"{of['mean']:.4f} [{of['low']:.3f}, {of['high']:.3f}]"


def _difference(of: Mapping[str, Any]) -> str:
    text = f"{of['mean']:+.4f} [{of['low']:+.3f}, {of['high']:+.3f}]"
    return f"**{text}**" if of["low"] > 0 or of["high"] < 0 else text


def _sentence(part: Mapping[str, Any]) -> str:
    """Without the engines' names, which say the objective, and without times, which are those of a loaded machine."""
    sentence: str = part["run"]["sentence"].rpartition(" It takes ")[0]
    for engine in part["produced"]["engines"]:
        sentence = sentence.replace(f"{engine['name']} ", "")
    return sentence


def _steps(part: Mapping[str, Any]) -> int:
    steps: int = part["asked"]["steps"]
    return steps


def worst_deviation(name: str, part: Mapping[str, Any]) -> float:
    """The largest relative difference of our figures from those of plain PyTorch."""
    found = {(row["method"], row["seed"]["name"]): row["summary"] for row in part["rows"]}
    return max(
        abs(found[key][column]["mean"] / value - 1)
        for key, values in REFERENCE[name].items()
        for column, value in zip(("rd@5", "rd@10"), values, strict=True)
    )


def _against_reference(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    found = {(row["method"], row["seed"]["name"]): row["summary"] for row in part["rows"]}
    yield (
        f"Against plain PyTorch, batch 1, computed apart over the same photographs: {len(REFERENCE[name])} rows, the "
        f"largest difference {100 * worst_deviation(name, part):.2f} %."
    )
    yield ""
    yield "| | RD@5, PyTorch | RD@5, engine | RD@10, PyTorch | RD@10, engine |"
    yield "|---|---|---|---|---|"
    for (method, seed), (five, ten) in REFERENCE[name].items():
        own = [found[method, seed][column]["mean"] for column in ("rd@5", "rd@10")]
        yield f"| {METHODS[method]}, {seed} | {five:.4f} | {own[0]:.4f} | {ten:.4f} | {own[1]:.4f} |"


def _sweep_table(part: Mapping[str, Any]) -> Iterator[str]:
    points = _points(part)
    methods = list(dict.fromkeys(method for method, _ in points))
    alphas = sorted({alpha for _, alpha in points})
    yield f"| alpha | {' | '.join(f'{METHODS[m]} RD@5 | {METHODS[m]} RD@10' for m in methods)} |"
    yield f"|---|{'---|' * (2 * len(methods))}"
    for alpha in alphas:
        cells = [_interval(points[m, alpha][c]) for m in methods for c in ("rd@5", "rd@10")]
        yield f"| {alpha:g} | {' | '.join(cells)} |"


def _points(part: Mapping[str, Any]) -> dict[tuple[str, float], Mapping[str, Any]]:
    return {(row["method"], row["seed"]["alpha"]): row["summary"] for row in part["rows"]}


def draw(document: Mapping[str, Any], picture: Path) -> None:
    """RD over alpha with its intervals, a panel a model and share."""
    parts = {b.name: document["parts"][f"{b.name}-sweep"] for b in BIRDS if f"{b.name}-sweep" in document["parts"]}
    figure = Figure(figsize=(9.5, 3.4 * max(1, len(parts))), layout="constrained")
    panels = figure.subplots(max(1, len(parts)), 2, squeeze=False)
    for row, (name, part) in enumerate(parts.items()):
        points = _points(part)
        for axis, column in zip(panels[row], ("rd@5", "rd@10"), strict=True):
            for method in dict.fromkeys(method for method, _ in points):
                alphas = sorted(alpha for m, alpha in points if m == method)
                found = [points[method, alpha][column] for alpha in alphas]
                colour = _COLOURS[method]
                axis.plot(alphas, [f["mean"] for f in found], "o-", color=colour, markersize=4, label=METHODS[method])
                low, high = ([f[end] for f in found] for end in ("low", "high"))
                axis.fill_between(alphas, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.set_title(f"{MODELS[name].replace('`', '')}, {COLUMNS[column]}", fontsize=9, loc="left")
            axis.set_xlabel("alpha, one reference (0: plain)", fontsize=8)
            axis.tick_params(labelsize=8)
            axis.grid(axis="y", color="#e4e7eb", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(fontsize=8, frameon=False)
    with atomic_write(picture) as stream:
        figure.savefig(stream, format="png", dpi=120)


_INTRODUCTION = """\
# The paper's table on photographs of birds

Do Finer maps say more about why this bird and not the ones that look like it? `finercam evaluate` on 235 \
photographs of 47 look-alike species, five each, with two classifiers: a MobileNetV2 of 965 birds, and a ViT-S/14 \
whose head was tuned on 188 of these photographs, so its confidences are high; compare rows with each other and not \
the models. The class explained is the predicted one; metrics are those of [metrics.md](metrics.md), removed pixels \
zero in normalised space. Brackets are 95 % bootstrap intervals over images; differences are paired, from plain \
Grad-CAM, and bold where the interval does not cover zero. Score-CAM is the library's form.

Seeds: `plain` has no contrast; `one:A` one reference at alpha A; `mean3:A` and `weighted3:A` three references that \
count equally, as in the paper, or by their softmax, as in pytorch-grad-cam.
"""
_RD = "Relative confidence drop, {images} photographs, higher is better"
_SHAPE = "The same with deletion ({steps} steps, lower is better) and the grid pointing game (a map that knows nothing \
has 0.25), {images} photographs drawn at random, the same for all rows"
_TIES = (
    "What differs is the rule for ties: Grad-CAM's map is zero in more than 90 % of the pixels of some photographs, \
of which plain PyTorch removed all and ours no more than 10 %. With `finercam evaluate --ties threshold` RD@10 of \
Grad-CAM is 0.2551 plain, 0.2507 with mean3:0.6 and 0.2465 with mean3:1, as in PyTorch."
)
_END = """\
## How it was made

`python benchmarks/birds.py` exports the engines, measures and writes benchmarks/results/birds.json; `python \
benchmarks/birds_report.py` writes this page. Both need weights and photographs that are not part of this project.
"""


if __name__ == "__main__":
    sys.exit(main())
