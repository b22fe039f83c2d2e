"""Is an explanation any good: metrics of maps on a user's own model and photographs."""

from finercam_rt.evaluation.evaluate import Question as Question
from finercam_rt.evaluation.evaluate import evaluate as evaluate
from finercam_rt.evaluation.results import Results as Results

__all__ = ["Question", "Results", "evaluate"]
