"""Colour maps as (256, 3) uint8 tables, for `ops.render`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NAMES = ("turbo", "jet", "gray")
"""The names that `table` knows."""

# Turbo: A. Mikhailov's polynomial approximation of his own map, "Turbo, An Improved Rainbow Colormap for
# Visualization" (Google, 2019), turbo_colormap.glsl, Apache-2.0; coefficients of x^0 to x^5 for red, green and blue.
_TURBO = (
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)

# Jet: the published definition of MATLAB's map: trapezoids of slope 4 centred at 3/4, 1/2 and 1/4.
_JET_CENTRES = (0.75, 0.5, 0.25)


def table(name: str) -> NDArray[np.uint8]:
    """The colours of values 0, 1/255, ..., 1.

    Returns:
        (256, 3) uint8, red green blue.

    Raises:
        KeyError: a name that is not in `NAMES`.
    """
    value = np.linspace(0.0, 1.0, 256)
    if name == "turbo":
        channels = [sum(c * value**power for power, c in enumerate(row)) for row in _TURBO]
    elif name == "jet":
        channels = [1.5 - np.abs(4.0 * (value - centre)) for centre in _JET_CENTRES]
    elif name == "gray":
        channels = [value, value, value]
    else:
        raise KeyError(name)
    colors: NDArray[np.float64] = 255.0 * np.clip(np.stack(channels, axis=-1), 0.0, 1.0)
    return np.rint(colors).astype(np.uint8)
