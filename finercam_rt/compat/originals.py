"""Classes of the original library where one of ours is asked for, as where only one import was changed."""

from __future__ import annotations

from typing import TypeVar

Class = TypeVar("Class")


def our_class(given: object, library: str, ours: type[Class]) -> type[Class] | None:
    """The class that is meant: a subclass of `ours`, or the one of the same name as a class of `library`.

    Args:
        given: what the user gave.
        library: the original's package, such as pytorch_grad_cam.
        ours: the base class of the classes that stand for the original's.

    Returns:
        The class, or None where there is none.
    """
    if not isinstance(given, type):
        return None
    if issubclass(given, ours):
        return given
    if given.__module__.partition(".")[0] != library:
        return None
    return next((own for own in ours.__subclasses__() if own.__name__ == given.__name__), None)
