"""What a user may choose of how metrics are computed."""

from __future__ import annotations

from dataclasses import dataclass

from finercam_rt.errors import InputError

ZERO, BLUR, MEAN = "zero", "blur", "mean"
FILLS = (ZERO, BLUR, MEAN)
"""What removed pixels become: zero in the classifier's normalised space, the blurred image, the image's mean colour."""
INDEX, THRESHOLD = "index", "threshold"
TIES = (INDEX, THRESHOLD)
"""Which of equal pixels are removed: of the first in reading order as many as are asked for, or all of them."""


@dataclass(frozen=True)
class MetricOptions:
    """How metrics are computed.

    fill: what removed pixels become, for the confidence drops and deletion. insertion_fill: what insertion starts
    from. ties: see `TIES`; for the confidence drops. steps: of deletion and insertion, at most one a pixel. tiles: of
    a side of the grid of the grid pointing game. noise: standard deviations of the noise that noise robustness adds,
    in normalised space. noise_draws: noisy copies an image and standard deviation. seed: of all that is drawn by
    chance.
    """

    fill: str = ZERO
    insertion_fill: str = BLUR
    ties: str = INDEX
    steps: int = 50
    tiles: int = 2
    noise: tuple[float, ...] = (0.1, 0.3, 1.0)
    noise_draws: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be computed.

        Raises:
            InputError: an unknown fill or tie rule, or a number out of range.
        """
        for name, choice, known in (
            ("fill", self.fill, FILLS),
            ("insertion fill", self.insertion_fill, FILLS),
            ("tie rule", self.ties, TIES),
        ):
            if choice not in known:
                raise InputError(f"the {name} is {choice!r}; use one of {', '.join(known)}.")
        for name, value, least in (
            ("number of steps", self.steps, 1),
            ("number of tiles", self.tiles, 2),
            ("number of noise draws", self.noise_draws, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"the {name} is {value}; give at least {least}.")
        if not self.noise or not all(0 <= level < float("inf") for level in self.noise):
            raise InputError(f"the noise is {self.noise!r}; give one or more standard deviations of at least 0.")
