"""The classes of a zero-shot model: a text embedding each, with its name, in a file that says which model made it."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from finercam_rt.errors import InputError
from finercam_rt.files import atomic_write, system_reason
from finercam_rt.manifest import Manifest

SCHEMA = 1
"""The version of the file; a newer one is refused."""
_VALUES, _METADATA = "class_embeddings", "finercam"
"""The arrays of the file; the latter is a text, JSON."""
_ADVICE = "give a file that `finercam embed-text` wrote"


@dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """K classes as vectors: values (K,D) float32, rows of length 1; names, K strings, no two the same.

    Rows of any other length are normalised, since only their directions count. templates are the sentences that the
    names were put into, where they were. model is the name of the model that made the vectors, and text_sha256 the hash
    of its weights but the image tower's; None where it is not known, and then no engine refuses them.

    Raises:
        InputError: not (K,D) numbers with K >= 2, not finite, a row of zeros, not one name a row, or a name twice.
    """

    values: NDArray[np.float32]
    names: tuple[str, ...]
    templates: tuple[str, ...] = ()
    model: str | None = None
    text_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check and normalise."""
        values = np.asarray(self.values)
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise InputError(f"class embeddings are (K,D) numbers, and these are {values.shape} {values.dtype}.")
        if len(values) < 2:
            raise InputError(f"a contrast needs the embeddings of at least 2 classes, and there are {len(values)}.")
        if not np.isfinite(values).all():
            raise InputError("class embeddings hold values that are not finite; make them again.")
        lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            row = int(np.flatnonzero(lengths == 0)[0])
            raise InputError(f"the embedding of class {row} is zero, so nothing is like it; leave that class out.")
        names = tuple(self.names)
        if len(names) != len(values) or not all(isinstance(name, str) and name.strip() for name in names):
            raise InputError(f"there are {len(names)} names for {len(values)} embeddings; give each a name of its own.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"the class name {twice!r} is given twice; give each class a name of its own.")
        unit = np.ascontiguousarray(values / lengths, dtype=np.float32)
        unit.flags.writeable = False  # engines that share them run in other threads
        object.__setattr__(self, "values", unit)
        object.__setattr__(self, "names", names)

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the names and the vectors: other prompts are other classes."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        digest.update(self.values.tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as .npz, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        record = {
            "schema": SCHEMA,
            "names": self.names,
            "templates": self.templates,
            "model": self.model,
            "text_sha256": self.text_sha256,
        }
        with atomic_write(Path(path)) as stream:
            text = np.array(json.dumps(record, ensure_ascii=False))
            np.savez(stream, class_embeddings=self.values, finercam=text)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ClassEmbeddings:
        """Read a file that `save` wrote.

        Raises:
            InputError: no such file, another one, damaged, of a newer schema, or embeddings that the constructor
                refuses.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                values, record = archive[_VALUES], json.loads(str(archive[_METADATA]))
            schema, names, templates = int(record["schema"]), _texts(record["names"]), _texts(record["templates"])
            made_by = [None if record[key] is None else str(record[key]) for key in ("model", "text_sha256")]
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; {_ADVICE}.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read ({system_reason(error)}); {_ADVICE}.") from None
        except (
            *(ArithmeticError, AttributeError, EOFError, KeyError, IndexError, RuntimeError, TypeError, ValueError),
            zipfile.BadZipFile,
        ):  # of damaged archives, among them those that seem to be encrypted or packed in another way
            raise InputError(f"{path} holds no class embeddings, or is damaged; {_ADVICE}.") from None
        if schema > SCHEMA:
            raise InputError(
                f"{path} has schema {schema}, newer than the {SCHEMA} that this finercam_rt reads; upgrade finercam-rt."
            )
        try:
            return ClassEmbeddings(values, names, templates, *made_by)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


EmbeddingsSource: TypeAlias = "ClassEmbeddings | str | os.PathLike[str]"
"""Embeddings, or the file of them."""


def embeddings_for(manifest: Manifest, engine: Path, given: EmbeddingsSource) -> ClassEmbeddings:
    """The embeddings, read where they are a file, if the engine of this manifest can take them.

    Raises:
        InputError: the engine's classes are fixed; embeddings of another size or of another model; see `load`.
    """
    zero_shot, model = manifest.zero_shot, manifest.model
    if zero_shot is None:
        raise InputError(f"{engine} has {manifest.num_classes} fixed classes; leave class embeddings out.")
    if not isinstance(given, (ClassEmbeddings, str, os.PathLike)):
        raise InputError(f"class embeddings are ClassEmbeddings or a file of them, not {type(given).__name__}.")
    embeddings = given if isinstance(given, ClassEmbeddings) else ClassEmbeddings.load(given)
    source = "the class embeddings" if isinstance(given, ClassEmbeddings) else str(given)
    if embeddings.values.shape[1] != zero_shot.embedding_dim:
        raise InputError(
            f"{source}: rows of {embeddings.values.shape[1]} numbers, and {model.name} has embeddings of "
            f"{zero_shot.embedding_dim}; make them with the model of the engine."
        )
    if embeddings.text_sha256 not in (None, zero_shot.text_sha256):
        raise InputError(
            f"{source}: made by another text tower ({embeddings.model}) than the engine's ({model.name}); make them "
            "with the same checkpoint."
        )
    return embeddings


def no_classes(engine: Path) -> InputError:
    """For an engine of a zero-shot model that was not given any."""
    return InputError(
        f"{engine} is a zero-shot model, whose classes are given when it runs; make them with `finercam embed-text` "
        "and give the file as class_embeddings (--class-embeddings)."
    )


def random_embeddings(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, dimension) float32: directions of no meaning, to measure and to verify with."""
    values = np.random.default_rng(seed).standard_normal((count, dimension))
    unit: NDArray[np.float32] = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError("not a list of texts")
    return tuple(str(value) for value in values)
