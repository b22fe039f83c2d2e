"""The kernels by their names in C++."""

from __future__ import annotations

METHODS = ("channel_weights", "gradcam", "gradcam++", "xgradcam", "fem", "layercam", "hirescam", "gradcamelementwise")
"""In the order of the enumeration Method."""
