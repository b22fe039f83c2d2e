"""An engine's own maps by the protocol of the other methods."""

from __future__ import annotations

from finercam_rt.engine import Engine
from finercam_rt.methods.classifier import DEFAULT_MEMORY, Classifier
from finercam_rt.methods.protocol import Classes, Floats, Maps, OneByOne


class EngineSource(OneByOne):
    """The maps that an engine draws by one of its methods.

    Args:
        engine: of any head.
        method: one that it serves; None is its own.
        memory: bytes of images at once.

    Raises:
        InputError: a method that the engine does not serve; see `Classifier`.
    """

    def __init__(self, engine: Engine, method: str | None = None, *, memory: int = DEFAULT_MEMORY) -> None:
        """Choose the method."""
        self.name = method or engine.method
        self._classifier = Classifier(engine if method is None else engine.with_method(method), memory)

    def explain(
        self, images: Floats, target: Classes | None = None, references: Classes | None = None, alpha: float = 0.0
    ) -> Maps:
        """See MapSource.explain.

        Raises:
            InputError: see `Engine.__call__`.
        """
        found = self._classifier.explained(images, target, references, alpha)
        return Maps(found.saliency_map, found.target, found.references, found.logits)
