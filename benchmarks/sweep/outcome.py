"""What comes of holding an engine to the oracle in a runtime, and by which tolerances."""

from __future__ import annotations

RIGHT, WRONG, REFUSED = "right", "wrong", "refused"
TOLERANCE = 1e-4
"""Relative error of maps and logits: DESIGN, section 6."""
ROUNDING = 2.0
"""An engine may be this many times as far from float64 as rounding moves PyTorch's own, where it is above TOLERANCE."""
ROUNDED_AGAIN = 8
"""Draws of weights and images that are rounded to float32 once more, which show what rounding does."""
