"""The metrics; docs/metrics.md defines each."""

from finercam_rt.evaluation.metrics.options import FILLS as FILLS
from finercam_rt.evaluation.metrics.options import TIES as TIES
from finercam_rt.evaluation.metrics.options import MetricOptions as MetricOptions
from finercam_rt.evaluation.metrics.registry import NAMES as NAMES
from finercam_rt.evaluation.metrics.registry import metrics_by_name as metrics_by_name

__all__ = ["FILLS", "NAMES", "TIES", "MetricOptions", "metrics_by_name"]
