"""What an evaluation has measured so far, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from finercam_rt.errors import InputError
from finercam_rt.files import json_bytes, system_reason

if sys.platform != "win32":
    import fcntl

PARTIAL = "unfinished.jsonl"


class Partial:
    """An append-only file: the question in its first line, then a line a batch.

    A line that was cut off by a kill is dropped and its batch measured again. Batches are the same images however
    often it was interrupted, so that the results are the same too.
    """

    def __init__(self, path: Path, question: Mapping[str, Any], *, fresh: bool) -> None:
        """Open or begin the file; with `fresh` begin in any case.

        Raises:
            InputError: it answers another question, another process writes it, or it cannot be read or written.
        """
        self._path = path
        self.batches = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{path} cannot be written ({system_reason(error)}).") from None
        try:
            self._lock()
            whole = 0 if fresh else self._resume(question)
            os.ftruncate(self._file, whole)
            os.lseek(self._file, whole, os.SEEK_SET)
            if not whole:
                self._write({"question": question})
        except OSError as error:
            os.close(self._file)
            raise InputError(f"{path} cannot be written ({system_reason(error)}).") from None
        except BaseException:
            os.close(self._file)
            raise

    def append(self, batch: Mapping[str, Any]) -> None:
        """Add the next batch; it is on disk when this returns."""
        try:
            self._write(batch)
        except OSError as error:
            raise InputError(f"{self._path} cannot be written ({system_reason(error)}).") from None
        self.batches += 1

    def read(self) -> Iterator[dict[str, Any]]:
        """Each batch, in order."""
        with self._path.open("rb") as stream:
            stream.readline()
            for line in stream:
                yield json.loads(line)

    def remove(self) -> None:
        """Delete the file, once the results are written."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Partial:
        """The file itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the file; one without a batch is not worth keeping."""
        os.close(self._file)
        if error is not None and not self.batches:
            self._path.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Keep others out for as long as the file is open; a kill frees it."""
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is evaluating into {self._path.parent}; wait for it, or give another folder."
            ) from None
        except OSError:
            return  # a file system without locks

    def _resume(self, question: Mapping[str, Any]) -> int:
        """How many bytes of the file hold whole lines that answer the question; 0 where there is none to go on with."""
        with self._path.open("rb") as stream:
            first = stream.readline()
            if not first.endswith(b"\n"):
                return 0
            try:
                asked = json.loads(first)["question"]
            except (ValueError, KeyError, TypeError, RecursionError):
                asked = None
            if not isinstance(asked, dict):
                raise InputError(f"{self._path} is damaged; give --fresh to begin anew, or another folder.")
            changed = [key for key in question if asked.get(key) != json.loads(json.dumps(question[key]))]
            if changed:
                raise InputError(
                    f"{self._path.parent} holds an unfinished evaluation with other {' and '.join(changed)}; ask for "
                    "the same to finish it, give --fresh to drop it, or another folder."
                )
            whole = stream.tell()
            for line in stream:
                if not line.endswith(b"\n") or not _is_record(line):
                    break
                whole += len(line)
                self.batches += 1
        return whole

    def _write(self, record: Mapping[str, Any]) -> None:
        """Without a buffer: what a full disk refused must not be written again when the file is closed."""
        rest = memoryview(json_bytes(json.dumps(record, ensure_ascii=False, separators=(",", ":"))) + b"\n")
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)


def _is_record(line: bytes) -> bool:
    """Whether a line is as it was written; a power failure leaves zeros."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
