"""The rows of an evaluation: which engine, by which method, with which seed."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finercam_rt.errors import InputError
from finercam_rt.evaluation.perturbation import ABLATION, CLASSLESS, OF_LOGITS, PERTURBATION, perturbation_methods_of
from finercam_rt.evaluation.seeds import ONE, PLAIN, Seed, default_seeds, parse_seed
from finercam_rt.manifest import INT8, METHODS, Manifest


@dataclass(frozen=True)
class Row:
    """One line of the table. engine: its place among the engines; name: what it is called in all results."""

    engine: int
    method: str
    seed: Seed
    name: str


def methods_of(manifest: Manifest) -> tuple[str, ...]:
    """The methods whose maps the engine's own outputs give."""
    return (manifest.method,) if manifest.taps is None else manifest.taps.methods


def plan_rows(
    names: Sequence[str],
    manifests: Sequence[Manifest],
    methods: Sequence[str] | None,
    seeds: Sequence[str] | None,
    tails: Collection[int] = (),
) -> list[Row]:
    """The rows, engine by engine, method by method, seed by seed; the first is the baseline.

    An engine takes the methods and seeds that it can. Of two engines that differ in their objective alone, as the same
    model exported twice, the second leaves out what does not depend on it: plain maps and those of one reference. So do
    methods that read no gradients for all seeds but plain. Methods that compute the objective themselves
    (`perturbation.OF_LOGITS`) take the seeds of any.

    Args:
        names: of the engines, all different.
        manifests: theirs.
        methods: None for all that the engine itself gives; those of `perturbation` are taken where they are named.
        seeds: None for plain and the engine's own.
        tails: the places of the engines whose tails are given.

    Raises:
        InputError: a method or a seed that no engine can compute, or one given twice.
    """
    rows: list[Row] = []
    taken: set[tuple[int, str, Seed]] = set()
    for engine, manifest in enumerate(manifests):
        twin = next(k for k in range(engine + 1) if k == engine or _same_but_objective(manifests[k], manifest))
        for method in _methods(manifest, methods, engine in tails):
            for seed in _seeds(manifest, method, seeds):
                if seed.kind != PLAIN and (METHODS.get(method) == "nothing" or method in CLASSLESS):
                    continue
                alike = seed.kind in (PLAIN, ONE) or method in OF_LOGITS
                key = (twin if alike else engine, method, seed)
                if key in taken:
                    continue
                taken.add(key)
                label = f"{method} {seed.name}"
                rows.append(Row(engine, method, seed, f"{names[engine]} {label}" if len(names) > 1 else label))
    _check_all_served(names, manifests, methods, seeds, tails, rows)
    return rows


def _methods(manifest: Manifest, methods: Sequence[str] | None, tail: bool) -> list[str]:
    own = methods_of(manifest)
    if methods is None:
        return [*own]
    return [name for name in methods if name in (*own, *perturbation_methods_of(manifest, tail))]


def _seeds(manifest: Manifest, method: str, seeds: Sequence[str] | None) -> list[Seed]:
    if seeds is None:
        return default_seeds(manifest)
    parsed = [parse_seed(text, manifest) for text in seeds]
    return [seed for seed in parsed if seed.unfit(manifest, any_objective=method in OF_LOGITS) is None]


def _same_but_objective(a: Manifest, b: Manifest) -> bool:
    """Whether two engines, of two objectives, compute the same logits, activations and gradients of a class.

    Two of one objective are two engines because they are to be compared, and int8 has ranges of its own in each.
    """
    if "softmax" in (a.objective, b.objective) or a.objective == b.objective or a.precision in INT8:
        return False
    same = {"objective": "", "passes": (), "verification": {}, "producer": {}, "references": 0}
    return dataclasses.replace(a, **same) == dataclasses.replace(b, **same)  # type: ignore[arg-type]


def _check_all_served(
    names: Sequence[str],
    manifests: Sequence[Manifest],
    methods: Sequence[str] | None,
    seeds: Sequence[str] | None,
    tails: Collection[int],
    rows: Sequence[Row],
) -> None:
    for what, given in (("method", methods), ("seed", seeds)):
        if given is not None and not given:
            raise InputError(f"no {what} is given; name at least one, or leave --{what}s out.")
        for text in given or ():
            if list(given or ()).count(text) > 1:
                raise InputError(f"the {what} {text!r} is given twice; leave one out.")
    can = {name for k, m in enumerate(manifests) for name in (*methods_of(m), *perturbation_methods_of(m, k in tails))}
    for method in methods or ():
        if method not in can:
            if method == ABLATION:
                raise InputError(
                    f"{method} runs what is behind the layer once a channel; export with --head taps --tail FILE, and "
                    "give that file with --tail."
                )
            if method in PERTURBATION:
                raise InputError(
                    f"{method} reads the activations, and no engine gives them; export one with --head taps."
                )
            if method in METHODS:
                raise InputError(
                    f"none of the engines draws {method}; export one with --method {method}, or with --head taps "
                    "--gradients for all methods."
                )
            known = [*METHODS, *PERTURBATION]
            near = difflib.get_close_matches(method, known, n=1)
            advice = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(known)}"
            raise InputError(f"there is no method {method!r}; {advice}.")
    for text in seeds or ():
        reasons = [
            f"{name}: {reason}"
            for name, manifest in zip(names, manifests, strict=True)
            if (reason := parse_seed(text, manifest).unfit(manifest)) is not None
        ]
        asked = {parse_seed(text, manifest) for manifest in manifests}
        if len(reasons) == len(names) and not any(row.seed in asked for row in rows):
            raise InputError(
                f"no engine can compute the seed {text!r} ({'; '.join(reasons)}); export one with that --objective and "
                "--references."
            )
    if not rows:
        raise InputError("no engine can compute any of these methods with any of these seeds; give others.")
