"""What comes of holding an engine to the oracle in a runtime, and by which tolerances."""

from __future__ import annotations

RIGHT, WRONG, REFUSED = "right", "wrong", "refused"
TOLERANCE = 1e-4
"""Relative error of maps and logits: DESIGN, section 6."""
ROUNDING = 2.0
"""An engine may be this many times as far from float64 as PyTorch's own float32 is, where that is above TOLERANCE."""
