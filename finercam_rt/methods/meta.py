"""MetaCAM: where the most important pixels of several maps agree, with the share of pixels that ROAD likes best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finercam_rt import ops
from finercam_rt.errors import InputError
from finercam_rt.methods.objective import Values
from finercam_rt.methods.protocol import Classes, Floats, Maps, MapSource, OneByOne, OnProgress

DEFAULT_SHARES = tuple(share / 100 for share in range(5, 100, 10))

RoadScore: TypeAlias = Callable[[Floats, Classes, Floats], Values]
"""(images (N,C,H,W), target (N,), maps (N,H,W)) -> (N,) combined ROAD, the higher the better; NaN where undefined."""
Subset: TypeAlias = tuple[int, ...]


class _Ballot(NamedTuple):
    """places (n,N,H,W) int32, the rank of each pixel in each component; counts (n,N), whether a component has a say."""

    places: NDArray[np.int32]
    counts: NDArray[np.bool_]

    def votes(self, subset: Subset, share: float) -> Floats:
        """(N,H,W) the share of the components of a subset that have a pixel among their top `share` of pixels."""
        members = list(subset)
        number = round(share * self.places[0, 0].size)
        top = (self.places[members] < number) & self.counts[members][:, :, None, None]
        voters = np.maximum(self.counts[members].sum(axis=0), 1)
        return np.asarray(top.sum(axis=0) / voters[:, None, None], np.float32)


class ResidualEffects(NamedTuple):
    """What each component adds to the subsets that it joins; see `MetaCam.residual_effects`.

    names: of the n components. effects: (N,n,n) float64, cumulated over the subsets' sizes 0 to n - 1.
    """

    names: tuple[str, ...]
    effects: Values


class MetaCam(OneByOne):
    """V = mean over the components of [pixel is among the top k % of the component's map], k chosen for each image.

    Of the shares k, the one whose V has the highest combined ROAD is taken (adaptive threshold), ties to the smaller
    one. With subsets, the same over all subsets of the components as well. The map is of the input's size. A component
    whose map says nothing of an image (its status is not ok) has no vote on it. Top-k, votes, the threshold by ROAD and
    the search over combinations are the paper's; the grid of shares is ours.

    Args:
        components: at least one method; each is asked with the same target, references and alpha.
        road: what a map is worth.
        shares: k / 100, between 0 and 1.
        subsets: whether to search all 2^n - 1 subsets, each of which costs a ROAD a share.
        on_progress: called with the maps whose ROAD was taken, and their number in all.

    Raises:
        InputError: no components, no shares, or a share that is not between 0 and 1.

    Source: MetaCAM, arXiv 2307.16863.
    """

    name = "metacam"

    def __init__(
        self,
        components: Sequence[MapSource],
        road: RoadScore,
        *,
        shares: Sequence[float] = DEFAULT_SHARES,
        subsets: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Take the components and what judges them."""
        if not components:
            raise InputError("MetaCAM has no components to vote; give at least one method.")
        if not shares or not all(0 < share < 1 for share in shares):
            raise InputError(f"the shares are {list(shares)}; give at least one, each between 0 and 1.")
        self._components, self._road = tuple(components), road
        self._shares, self._subsets = tuple(sorted(shares)), subsets
        self._on_progress = on_progress

    def explain(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> Maps:
        """See MapSource.explain.

        Raises:
            InputError: see the components.
        """
        ballot, first = self._ballot(images, target, references, alpha)
        everyone = tuple(range(len(self._components)))
        subsets = self._all_subsets() if self._subsets else [everyone]
        best, scores = np.zeros((len(images), *images.shape[2:]), np.float32), np.full(len(images), -np.inf)
        for step, subset in enumerate(subsets):
            found, maps = self._best_share(images, first.target, ballot, subset, step, len(subsets))
            better = found > scores
            best[better], scores[better] = maps[better], found[better]
        return first._replace(saliency_map=best)

    def residual_effects(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> ResidualEffects:
        """effects[:,i,s] = sum over subsets S without i, |S| <= s, of ROAD(S + i) - ROAD(S), each at its best share.

        The empty subset's ROAD is 0, that of a random map; so is that of a subset whose ROAD is undefined. The paper
        names a cumulative residual effect; its formula is not public, and this one is ours. It takes the ROAD of every
        share of all 2^n - 1 subsets.

        Raises:
            InputError: see the components.
        """
        ballot, first = self._ballot(images, target, references, alpha)
        number = len(self._components)
        roads: dict[Subset, Values] = {(): np.zeros(len(images))}
        subsets = self._all_subsets()
        for step, subset in enumerate(subsets):
            found, _ = self._best_share(images, first.target, ballot, subset, step, len(subsets))
            roads[subset] = np.where(np.isfinite(found), found, 0.0)
        effects = np.zeros((len(images), number, number))
        for subset, road in roads.items():
            for component in set(range(number)) - set(subset):
                joined = roads[tuple(sorted((*subset, component)))]
                effects[:, component, len(subset)] += joined - road
        return ResidualEffects(tuple(source.name for source in self._components), effects.cumsum(axis=2))

    def _ballot(
        self, images: Floats, target: Classes | None, references: Classes | None, alpha: float
    ) -> tuple[_Ballot, Maps]:
        """The ranks of all components' maps, and the answer of the first."""
        answers = [source.explain(images, target, references, alpha) for source in self._components]
        drawn = [ops.render(answer.saliency_map, (images.shape[2], images.shape[3])) for answer in answers]
        places = np.stack([ops.rank(one.image) for one in drawn])  # maps that are not ok are drawn as zeros
        return _Ballot(places, np.stack([one.status == ops.Status.OK for one in drawn])), answers[0]

    def _best_share(
        self, images: Floats, target: Classes, ballot: _Ballot, subset: Subset, step: int, steps: int
    ) -> tuple[Values, Floats]:
        """(N,) the highest ROAD over the shares, -inf where none is defined, and the votes (N,H,W) that have it."""
        scores, best = np.full(len(images), -np.inf), np.zeros((len(images), *images.shape[2:]), np.float32)
        for done, share in enumerate(self._shares, start=1):
            votes = ballot.votes(subset, share)
            found = self._road(images, target, votes)
            better = found > scores  # NaN is not
            scores[better], best[better] = found[better], votes[better]
            if self._on_progress is not None:
                every = len(self._shares) * len(images)
                self._on_progress(step * every + done * len(images), steps * every)
        return scores, best

    def _all_subsets(self) -> list[Subset]:
        """Small ones first, so that ties go to them."""
        members = range(len(self._components))
        return [subset for size in range(1, len(members) + 1) for subset in combinations(members, size)]
