"""`evaluate`: explanations of photographs by several engines, methods and seeds, measured and compared."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finercam_rt.embeddings import EmbeddingsSource, embeddings_for
from finercam_rt.engine import DEFAULT_BATCH_SIZE, Engine
from finercam_rt.engine_file import read_manifest
from finercam_rt.errors import InputError
from finercam_rt.evaluation.batch import Metric
from finercam_rt.evaluation.dataset import Dataset, read_dataset
from finercam_rt.evaluation.measuring import Measurer
from finercam_rt.evaluation.metrics import MetricOptions, metrics_by_name
from finercam_rt.evaluation.metrics.confidence_drop import canonical
from finercam_rt.evaluation.metrics.curves import DELETION, INSERTION
from finercam_rt.evaluation.partial import PARTIAL, Partial
from finercam_rt.evaluation.perturbation import PerturbationOptions
from finercam_rt.evaluation.provenance import engine_names, engine_record, now, produced_by
from finercam_rt.evaluation.results import Results, gather
from finercam_rt.evaluation.rows import plan_rows
from finercam_rt.evaluation.sources import EngineRows, OnStep
from finercam_rt.evaluation.writing import write_results
from finercam_rt.files import check_output_folder
from finercam_rt.manifest import Manifest
from finercam_rt.methods.rise import DEFAULT_MASKS
from finercam_rt.onnx_metadata import read_tail_manifest
from finercam_rt.tail import Tail

PREDICTED, LABEL = "predicted", "label"
TARGETS = (PREDICTED, LABEL)
"""Which class is explained: the one that the engine predicts, or the photograph's own."""
DEFAULT_METRICS = ("rd@5", "rd@10")
ANNOTATED_METRICS = ("energy", "pointing_game")
"""What is measured where nothing is asked for, the latter where the data say where objects are."""


@dataclass(frozen=True)
class Question:
    """What is asked of the data; see `evaluate`."""

    methods: Sequence[str] | None = None
    seeds: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    target: str = PREDICTED
    rank_by: str | None = None
    options: MetricOptions = field(default_factory=MetricOptions)
    channels: int | None = None
    masks: int = DEFAULT_MASKS
    labels: Mapping[str, str] | None = None
    label_column: str = "label"
    unlabelled: bool = False
    limit: int | None = None
    seed: int = 0


def evaluate(
    engines: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    question: Question | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    batch_size: int = DEFAULT_BATCH_SIZE,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    compute: str = "f32",
    class_embeddings: EmbeddingsSource | None = None,
    tails: Sequence[str | os.PathLike[str]] = (),
    command: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_step: OnStep | None = None,
    **asked: Any,
) -> Results:
    """Measure the explanations that engines give of a data set.

    Args:
        engines: one .onnx file of `finercam export`, or several of the same classes, which are compared side by side.
        data: a folder of images by class, or a .csv file; see `dataset.read_dataset`.
        question: what to measure, or its fields as keywords: methods (None: all that an engine itself draws), seeds
            (None: "plain" and the engine's own; see `seeds.parse_seed`), metrics (None: rd@5 and rd@10, and with boxes
            or masks energy and pointing_game; see `metrics.NAMES`), target ("predicted" or "label"), rank_by (the
            column that the recommendation goes by; None: the first), options (of the metrics), channels (of
            an image, that scorecam and ablationcam take; None: all), masks (of rise), labels, label_column,
            unlabelled, limit, and seed, of all that is drawn by chance.
        out: folder for results.json, results.csv and report.html. An evaluation that was interrupted there goes on.
            None: nothing is written.
        fresh: begin anew even so.
        batch_size: photographs a run.
        backend, device, threads, compute, class_embeddings: see `Engine`.
        tails: files of `finercam export --tail`, for ablationcam; each belongs to one of the engines.
        command: as it is shown in the report.
        on_progress: called with the maps measured and in all, a map an image and row.
        on_step: called within a batch with a method that takes many runs, its runs done and in all.

    Returns:
        Every figure, with its statistics. An image that cannot be read, one of a class that the engine does not have,
        and a map that explains nothing are listed there and take no part in any mean.

    Raises:
        InputError, EngineError, BackendError: wrong arguments, data or engines; `out` holds another question.
    """
    question = replace(question or Question(), **asked)
    started = now()
    paths = [engines] if isinstance(engines, (str, os.PathLike)) else list(engines)
    _check(question, paths, batch_size)
    if out is not None:
        check_output_folder(Path(out))
        _check_report()
    manifests = [read_manifest(path) for path in paths]
    _check_comparable(paths, manifests)
    _check_steps(question, manifests)
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Engine(p, backend, device, threads, compute=compute, class_embeddings=class_embeddings))
            for p in paths
        ]
        dataset = _dataset(data, opened[0], question)
        given_tails = _tails(tails, opened, threads)
        perturbation = PerturbationOptions(question.channels, question.masks, question.seed)
        names = engine_names([engine.path for engine in opened])
        rows = plan_rows(names, [engine.manifest for engine in opened], question.methods, question.seeds, given_tails)
        metrics = metrics_by_name(_metric_names(question, dataset), replace(question.options, seed=question.seed))
        _check_explains(metrics, dataset)
        columns = [column for metric in metrics for column in metric.columns]
        rank_by = _rank_by(question, columns)
        served = [
            EngineRows(e, [row for row in rows if row.engine == k], given_tails.get(k), perturbation, on_step)
            for k, e in enumerate(opened)
        ]
        zero_shot = {}
        if class_embeddings is not None:
            given = embeddings_for(opened[0].manifest, opened[0].path, class_embeddings)
            zero_shot = {"class embeddings": {"sha256": given.sha256, "names": list(given.names)}}
        produced = produced_by(
            [engine_record(name, engine) for name, engine in zip(names, opened, strict=True)],
            dataset,
            {
                "rows": [row.name for row in rows],
                "metrics": columns,
                "metric options": vars(question.options) | {"noise": list(question.options.noise)},
                "perturbation": {"channels": question.channels, "masks": question.masks},
                "target": question.target,
                "limit": question.limit,
                "seed": question.seed,
                "batch size": batch_size,
                **zero_shot,
            },
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out)
        measurer = Measurer(dataset, served, rows, metrics, by_label=question.target == LABEL)
        partial = stack.enter_context(Partial(folder / PARTIAL, produced, fresh=fresh))
        _measure_all(measurer, partial, len(dataset.samples), len(rows), batch_size, on_progress)
        results = gather(
            partial.read(),
            dataset,
            rows,
            columns,
            _directions(metrics),
            engines=len(opened),
            rank_by=rank_by,
            seed=question.seed,
            produced=produced,
            run={"date": started, "command": command},
        )
        if not results.read.any():
            partial.remove()
            raise InputError(f"none of the {len(results.names)} images can be read: {results.left_out[-1].reason}")
        if out is not None:
            from finercam_rt.evaluation.report import write_report

            write_results(results, folder)
            write_report(results, dataset, served, folder)
            partial.remove()
    return results


def _measure_all(
    measurer: Measurer,
    partial: Partial,
    count: int,
    rows: int,
    size: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    def report(image: float) -> None:
        if on_progress is not None:
            on_progress(round(image * rows), count * rows)

    measurer.on_row = lambda start, images, done: report(start + images * done / rows)
    report(0)
    for start in range(0, count, size):
        stop = min(count, start + size)
        if start // size >= partial.batches:
            began = time.perf_counter()
            record = measurer.measure(start, stop)
            partial.append({**record, "took": time.perf_counter() - began})
        report(stop)


def _check(question: Question, paths: Sequence[Any], batch_size: int) -> None:
    if not paths:
        raise InputError("there is no engine to evaluate; give at least one.")
    if question.target not in TARGETS:
        raise InputError(f"the target is {question.target!r}; use one of {', '.join(TARGETS)}.")
    if question.target == LABEL and question.unlabelled:
        raise InputError("the label is to be explained, but the data are taken without labels; leave one of them out.")
    for name, value in (
        ("batch size", batch_size),
        ("number of channels", question.channels),
        ("number of masks", question.masks),
    ):
        if value is not None and value < 1:
            raise InputError(f"the {name} is {value}; give at least 1.")
    if question.seed < 0:
        raise InputError(f"the seed is {question.seed}; give at least 0.")


def _check_report() -> None:
    """Refuse before the work what could not be written after it."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'the report needs {error.name}; `pip install "finercam-rt[evaluate]"`, or evaluate in Python without out.'
        ) from None


def _check_comparable(engines: Sequence[str | os.PathLike[str]], manifests: Sequence[Manifest]) -> None:
    """Refuse engines of different classes before one is loaded, or measured; zero-shot ones are all given the same."""
    first = manifests[0]
    for path, manifest in zip(engines, manifests, strict=True):
        if (manifest.num_classes, manifest.classes) != (first.num_classes, first.classes):
            raise InputError(f"{engines[0]} and {path} differ in their classes; evaluate them one by one.")


def _check_steps(question: Question, manifests: Sequence[Manifest]) -> None:
    """Refuse curves of more steps than there are pixels, some of which would then change nothing."""
    height, width = min((manifest.input.size for manifest in manifests), key=math.prod)
    steps = question.options.steps
    if steps > height * width and {DELETION, INSERTION}.intersection(map(canonical, question.metrics or ())):
        raise InputError(
            f"the number of steps is {steps}, and an input has {height} x {width} pixels; give at most "
            f"{height * width}, one a pixel, though some 50 say as much."
        )


def _tails(paths: Sequence[str | os.PathLike[str]], engines: Sequence[Engine], threads: int | None) -> dict[int, Tail]:
    """Each engine's tail, by its place; one that belongs to none is refused."""
    found: dict[int, Tail] = {}
    for path in paths:
        cut = read_tail_manifest(path).cut_sha256
        places = [k for k, e in enumerate(engines) if e.manifest.taps is not None and e.manifest.taps.cut_sha256 == cut]
        for k in places or [0]:
            found[k] = Tail(path, engines[k].manifest, threads=threads)
    return found


def _dataset(data: str | os.PathLike[str], engine: Engine, question: Question) -> Dataset:
    dataset = read_dataset(
        data,
        engine.classes,
        labels=question.labels,
        label_column=question.label_column,
        unlabelled=question.unlabelled,
        limit=question.limit,
        seed=question.seed,
    )
    if question.target == LABEL and any(sample.label is None for sample in dataset.samples):
        raise InputError(f"the label is to be explained, and {data} has none; put the images into folders by class.")
    if question.target != LABEL and any(sample.references for sample in dataset.samples):
        raise InputError(f"{data} names references, which are of the photographs' own classes; give --target label.")
    return dataset


def _check_explains(metrics: Sequence[Metric], dataset: Dataset) -> None:
    """Refuse metrics that explain images of their own, for which no references are named."""
    if any(sample.references for sample in dataset.samples):
        for metric in metrics:
            if metric.needs_explain:
                raise InputError(
                    f"{' and '.join(metric.columns)} explain other images too, for which {dataset.name} names no "
                    "references; leave the metric or the column out."
                )


def _metric_names(question: Question, dataset: Dataset) -> Sequence[str]:
    annotated = any(sample.annotated for sample in dataset.samples)
    for name in question.metrics or ():
        if name in ANNOTATED_METRICS and not annotated:
            raise InputError(f"{name} needs boxes or masks, and {dataset.name} has none; give a table with them.")
    if question.metrics is not None:
        return question.metrics
    return (*DEFAULT_METRICS, *(ANNOTATED_METRICS if annotated else ()))


def _rank_by(question: Question, columns: Sequence[str]) -> str:
    wanted = question.rank_by
    if wanted is None:
        wanted = next(iter(question.metrics or DEFAULT_METRICS))
        return canonical(wanted) if canonical(wanted) in columns else columns[0]
    if canonical(wanted) not in columns:
        raise InputError(f"{wanted!r} is not measured, so nothing ranks by it; name one of {', '.join(columns)}.")
    return canonical(wanted)


def _directions(metrics: Sequence[Metric]) -> dict[str, bool]:
    return {column: metric.higher_is_better[column] for metric in metrics for column in metric.columns}
