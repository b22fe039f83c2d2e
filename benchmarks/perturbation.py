"""What methods that perturb images cost, against grad-cam: Score-CAM and Ablation-CAM of a 320-channel layer.

On MobileNetV2 with its bird weights and a photograph of the shared assets, layer blocks.6. Maps are compared before
they are timed; contenders run in turn, in a new random order each round. With one thread CPU time is the figure, with
two wall time on an idle machine (run.py says why); both are in the file. channels: what --channels costs, over some
photographs. kernels: mask, remove and rank against NumPy and torch.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from birds import ASSETS, BIRDS, exported
from comparison import timing
from comparison.environment import describe
from comparison.script import RESULTS, make_parser, refuse, write_text
from numpy.typing import NDArray

from finercam_rt import Engine, Tail, ops
from finercam_rt.cli.progress import Progress, progress
from finercam_rt.comparison import compare_maps
from finercam_rt.evaluation.batch import MeasuredBatch
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.evaluation.sources import resized
from finercam_rt.images import load_image
from finercam_rt.methods import AblationCam, ScoreCam
from finercam_rt.onnx_metadata import read_manifest
from finercam_rt.preprocess import Preprocessor

SCHEMA = 1
NAME, LAYER = "perturbed_mobilenetv2", "blocks.6"
PACKAGES = ("finercam-rt", "onnxruntime", "openvino", "torch", "timm", "grad-cam", "numpy")
BACKENDS = ("onnxruntime", "openvino")
THEIR_BATCHES = (16, 1, 4)
"""Of grad-cam's Score-CAM: its default, and smaller ones, which PyTorch runs faster here."""
CHANNELS = (16, 32, 64, 128)
SAME = 1e-4
GROUPS = ("score", "ablation", "forward", "kernels", "channels")
Images = NDArray[np.float32]
Calls = dict[str, Callable[[], object]]


def main(argv: list[str] | None = None) -> int:
    """0: done. 2: the assets are not there, a wrong argument, or maps that differ."""
    parser = make_parser("perturbation.py", __doc__)
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    parser.add_argument("--photographs", type=int, default=16, help="of channels (default: 16)")
    parser.add_argument("--output", type=Path, default=RESULTS / "perturbation.json", metavar="FILE")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    try:
        if not ASSETS.is_dir():
            raise ValueError("the shared assets (../shared/assets) are not on this machine.")
        document = json.loads(args.output.read_text()) if args.output.exists() else {"schema": SCHEMA}
        environment = describe(PACKAGES)
        for threads in args.threads:
            for group in (group for group in args.groups if group != "channels"):
                with progress(None, "rounds", f"{group}, {threads} threads") as bar:
                    found = _timed(_CALLS[group](threads), args.rounds, bar)
                document.setdefault(group, {})[str(threads)] = {"environment": environment, "times": found}
                write_text(json.dumps(document, indent=1) + "\n", args.output)
        if "channels" in args.groups:
            found = _channels(args.photographs)
            document["channels"] = {"environment": environment, "photographs": args.photographs, "parts": found}
        write_text(json.dumps(document, indent=1) + "\n", args.output)
        write_text(markdown(document), args.output.with_suffix(".md"))
    except ValueError as error:
        return refuse("perturbation.py", error)
    print(markdown(document))
    return 0


def _timed(calls: Calls, rounds: int, bar: Progress) -> dict[str, Any]:
    """CPU and wall milliseconds of each call over the rounds."""
    clocks = {name: partial(timing.timed, call) for name, call in calls.items()}
    first = {name: clock() for name, clock in clocks.items()}
    short = frozenset(name for name, (_, wall) in first.items() if wall < timing.SHORT)
    runs = []
    for seed in range(rounds):
        runs.append(timing.interleave(clocks, 1, short, seed))
        bar.advance()
    samples = timing.pooled(runs)
    return {
        name: {
            f"{clock}_ms": timing.spread([1e3 * value for value in getattr(found, clock)]) for clock in timing.CLOCKS
        }
        for name, found in samples.items()
    }


def _score(threads: int) -> Calls:
    image, model = _photographs(1), _torch_model(threads)
    sources = {name: ScoreCam(_engine(threads, name)) for name in BACKENDS}
    theirs = {f"grad-cam, batch {size}": _their_score(model, size) for size in THEIR_BATCHES}
    target = int(sources[BACKENDS[0]].explain(image).target[0])
    wanted = theirs["grad-cam, batch 16"](image, target)
    calls: Calls = {}
    for name, source in sources.items():
        found = source.explain(image, np.array([target])).saliency_map
        _check_same(found, wanted, f"Score-CAM by {name}")
        calls[f"finercam-rt, {name}"] = partial(source.explain, image, np.array([target]))
    return calls | {name: partial(call, image, target) for name, call in theirs.items()}


def _their_score(model: Any, size: int) -> Callable[[Images, int], NDArray[np.float32]]:
    from pytorch_grad_cam import ScoreCAM

    method = ScoreCAM(model, [model.get_submodule(LAYER)])
    method.batch_size = size
    return partial(_theirs, method)


def _theirs(method: Any, image: Images, target: int) -> NDArray[np.float32]:
    """grad-cam's normalised map (1,H,W), without its progress bars."""
    import torch
    import tqdm
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    bars, tqdm.tqdm = tqdm.tqdm, lambda values: values
    try:
        found: NDArray[np.float32] = method(torch.from_numpy(image), [ClassifierOutputTarget(target)])
    finally:
        tqdm.tqdm = bars
    return found


def _check_same(found: NDArray[np.float32], wanted: NDArray[np.float32], what: str) -> None:
    drawn = ops.render(found, wanted.shape[1:]).image
    drawn = (drawn - drawn.min()) / (drawn.max() - drawn.min())  # theirs is normalised before the resize and behind it
    error = float(np.linalg.norm(drawn - wanted) / np.linalg.norm(wanted))
    if not error < SAME:
        raise ValueError(f"{what} differs from grad-cam's by {error:.1e}; nothing is timed.")


def _ablation(threads: int) -> Calls:
    import torch
    from pytorch_grad_cam import AblationCAM

    image, model = _photographs(1), _torch_model(threads)
    engine = _engine(threads, "onnxruntime")
    source = AblationCam(engine, Tail(engine.path.with_name(f"{NAME}_tail.onnx"), engine.manifest, threads=threads))
    target = source.explain(image).target
    theirs = AblationCAM(model, [model.get_submodule(LAYER)])
    torch.set_num_threads(threads)
    # not the same map: the activations of this layer have both signs, see AblationCam
    return {
        "finercam-rt, onnxruntime": partial(source.explain, image, target),
        "grad-cam, batch 32": partial(_theirs, theirs, image, int(target[0])),
    }


def _forward(threads: int) -> Calls:
    calls: Calls = {}
    for name in BACKENDS:
        engine = _engine(threads, name)
        images = _photographs(4)
        calls |= {f"{name}, logits": partial(engine.logits, images), f"{name}, all": partial(engine, images)}
    return calls


def _kernels(threads: int) -> Calls:
    """A photograph masked by 32 maps, with 50 shares of its pixels removed, and a map's ranks."""
    import torch

    torch.set_num_threads(threads)
    image, rng = _photographs(1), np.random.default_rng(0)
    maps, saliency = (rng.random(shape, np.float32) for shape in ((1, 32, 7, 7), (1, 224, 224)))
    masked, removed = np.empty((1, 32, *image.shape[1:]), np.float32), np.empty((1, 50, *image.shape[1:]), np.float32)
    ranks, counts = ops.rank(saliency), np.linspace(0, 224 * 224, 50).astype(np.int64)

    def their_mask() -> Any:
        up = torch.nn.UpsamplingBilinear2d((224, 224))(torch.from_numpy(maps))
        low, high = (f(up.flatten(2), -1)[:, :, None, None] for f in (torch.amin, torch.amax))
        return torch.from_numpy(image)[:, None] * ((up - low) / (high - low + 1e-8))[:, :, None]

    def rank_numpy() -> Any:
        places = np.empty(224 * 224, np.int32)
        places[np.argsort(-saliency.ravel(), kind="stable")] = np.arange(224 * 224, dtype=np.int32)
        return places.reshape(saliency.shape)

    def remove_numpy() -> Any:
        return np.where(ranks[:, None, None] < counts[None, :, None, None, None], np.float32(0), image[:, None])

    own = partial(ops.mask, image, maps, align_corners=True, out=masked, threads=threads)
    own_removal = partial(ops.remove, image, ranks, counts, out=removed, threads=threads)
    own_rank = partial(ops.rank, saliency, threads=threads)
    for what, a, b in (
        ("mask", own(), their_mask().numpy()),
        ("remove", own_removal(), remove_numpy()),
        ("rank", own_rank(), rank_numpy()),
    ):
        if not np.allclose(a, b, atol=1e-5):
            raise ValueError(f"the kernel {what} differs from the other way; nothing is timed.")
    return {
        "mask, kernel": own,
        "mask, torch": their_mask,
        "remove, kernel": own_removal,
        "remove, NumPy": remove_numpy,
        "rank, kernel": own_rank,
        "rank, NumPy": rank_numpy,
    }


_CALLS: Mapping[str, Callable[[int], Calls]] = {
    "score": _score,
    "ablation": _ablation,
    "forward": _forward,
    "kernels": _kernels,
}


def _channels(count: int) -> list[dict[str, Any]]:
    """How the map of k channels agrees with that of all, means over the photographs, and RD@5 of both."""
    engine, images = _engine(1, "onnxruntime"), _photographs(count)
    (metric,) = metrics_by_name(["rd@5"], MetricOptions())
    maps, parts = {}, []
    with progress(len(CHANNELS) + 1, "maps", "channels") as bar:
        for k in (None, *CHANNELS):
            began = time.process_time()
            maps[k] = ScoreCam(engine, channels=k).explain(images)
            seconds = (time.process_time() - began) / count
            batch = MeasuredBatch(images, maps[k].logits, maps[k].target, engine.logits)
            drop = metric.measure(batch, resized(maps[k].saliency_map, images.shape[2:]))["rd@5"]
            pairs = zip(maps[k].saliency_map, maps[None].saliency_map, strict=True)
            agreement = [compare_maps(a, b, images.shape[2:]) for a, b in pairs]
            pairs = zip(maps[k].saliency_map, maps[None].saliency_map, strict=True)
            parts.append(
                {
                    "channels": k or engine.manifest.taps.channels,
                    "pearson": float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])),
                    "cosine": float(np.mean([one.cosine for one in agreement])),
                    "top_overlap": float(np.mean([one.top_overlap for one in agreement])),
                    "rd@5": float(np.nanmean(drop)),
                    "cpu_ms": 1e3 * seconds,
                }
            )
            bar.advance()
    return parts


def _engine(threads: int, backend: str) -> Engine:
    path = exported(BIRDS[0], NAME, ("--target-layer", LAYER))
    return Engine(path, backend=backend, threads=threads)


def _torch_model(threads: int) -> Any:
    import timm
    import torch

    torch.set_num_threads(threads)
    model = timm.create_model("mobilenetv2_100", num_classes=965, pad_type="same")
    model.load_state_dict(torch.load(ASSETS / BIRDS[0].checkpoint, map_location="cpu", weights_only=True))
    return model.eval()


def _photographs(count: int) -> Images:
    """(N,3,H,W) of different species."""
    files = sorted((ASSETS / "birds47").glob("*/2.jpg"))[:: max(1, 47 // count)][:count]
    preprocess = Preprocessor(read_manifest(exported(BIRDS[0], NAME, ("--target-layer", LAYER))).input)
    images, view = np.empty((len(files), 3, 224, 224), np.float32), np.empty((224, 224, 3), np.uint8)
    for row, file in enumerate(files):
        preprocess(load_image(file), images[row], view, file.name)
    return images


def markdown(document: Mapping[str, Any]) -> str:
    """The tables of a result file."""
    lines = ["# Methods that perturb images", "", "Made by `python benchmarks/perturbation.py`.", ""]
    for group, title in _TITLES.items():
        for threads, part in document.get(group, {}).items():
            environment = part["environment"]
            lines += [
                f"## {title}, {threads} thread{'s' if threads != '1' else ''}",
                "",
                *([_NOTES[group], ""] if group in _NOTES else []),
                f"{environment['cpu']}, load average {environment['load_average']} when it began.",
                "",
                "| | CPU ms, least | CPU ms, median | wall ms, least | wall ms, median |",
                "|---|---|---|---|---|",
            ]
            for name, times in part["times"].items():
                cells = [times[f"{clock}_ms"][key] for clock in timing.CLOCKS for key in ("min", "median")]
                lines.append(f"| {name} | " + " | ".join(f"{cell:,.4g}" for cell in cells) + " |")
            lines += ["", *_ratios(part["times"], "cpu" if threads == "1" else "wall")]
    if "channels" in document:
        part = document["channels"]
        lines += [
            "## Score-CAM of a part of the channels",
            "",
            f"Means over {part['photographs']} photographs, against the map of all channels.",
            "",
            "| channels | Pearson | cosine | top 5 % in common | RD@5 | CPU ms an image |",
            "|---|---|---|---|---|---|",
        ]
        for row in part["parts"]:
            cells = [f"{row[key]:.4f}" for key in ("pearson", "cosine", "top_overlap", "rd@5")]
            lines.append(f"| {row['channels']} | {' | '.join(cells)} | {row['cpu_ms']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def _ratios(times: Mapping[str, Any], clock: str) -> list[str]:
    """How many times ours grad-cam takes."""
    own = {name: of[f"{clock}_ms"] for name, of in times.items() if name.startswith("finercam-rt")}
    found = [
        f"{theirs} takes {times[theirs][f'{clock}_ms']['median'] / of['median']:.1f} times {name}"
        for theirs in times
        if theirs.startswith("grad-cam")
        for name, of in own.items()
    ]
    return [f"By the median of {'CPU' if clock == 'cpu' else 'wall'} time: {'; '.join(found)}.", ""] if found else []


_NOTES = {
    "score": f"The maps are the same, to {SAME:g} relative.",
    "ablation": "The maps are not the same: grad-cam lowers channels of a layer with both signs to -1e7, and leaves "
    "them so; it runs the whole model for each channel, and we the part behind the layer.",
    "kernels": "The results are the same. One photograph masked by 32 maps; with 50 shares of its pixels removed; one "
    "map's ranks.",
}
_TITLES = {
    "score": "Score-CAM of 320 channels, one photograph",
    "ablation": "Ablation-CAM of 320 channels, one photograph",
    "forward": "Logits alone against a whole run, 4 photographs",
    "kernels": "Kernels",
}


if __name__ == "__main__":
    sys.exit(main())
