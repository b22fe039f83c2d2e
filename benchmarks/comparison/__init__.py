"""The comparison: engines of ours against plain forward passes and against other libraries' Finer-CAM."""
