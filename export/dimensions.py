"""Which dimensions a reshape turns into which."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def match_dimensions(
    old: Sequence[int | torch.SymInt], new: Sequence[int | torch.SymInt]
) -> list[tuple[list[int], list[int]]] | None:
    """The least groups of dimensions that a reshape maps onto each other; None where the batch is folded."""
    batch_old = [i for i, size in enumerate(old) if not isinstance(size, int)]
    batch_new = [i for i, size in enumerate(new) if not isinstance(size, int)]
    if len(batch_old) != len(batch_new) or len(batch_old) > 1:
        return None
    if not batch_old:
        return _match_static(list(old), list(new), 0, 0)  # type: ignore[arg-type]
    i, j = batch_old[0], batch_new[0]
    if str(old[i]) != str(new[j]):
        return None
    before = _match_static(list(old[:i]), list(new[:j]), 0, 0)  # type: ignore[arg-type]
    after = _match_static(list(old[i + 1 :]), list(new[j + 1 :]), i + 1, j + 1)  # type: ignore[arg-type]
    if before is None or after is None:
        return None
    return [*before, ([i], [j]), *after]


def _match_static(
    old: list[int], new: list[int], old_offset: int, new_offset: int
) -> list[tuple[list[int], list[int]]] | None:
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = old[i] if i < len(old) else 1
        right = new[j] if j < len(new) else 1
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif right < left and j < len(new):
                right, j = right * new[j], j + 1
            else:
                return None
        groups.append(([old_offset + d for d in range(first_i, i)], [new_offset + d for d in range(first_j, j)]))
    return groups
