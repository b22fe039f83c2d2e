"""`finercam`: parses the command line and turns a user's mistake into one sentence and exit code 2."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import finercam_rt
from finercam_rt.errors import FinerCAMError
from finercam_rt.files import system_reason

COMMANDS = ("export", "embed-text", "build", "explain", "inspect", "compare", "evaluate", "bench", "demo")
"""Each is a module of this package (with _ for -) with add_parser(subparsers) and run(args) -> exit code."""

_MISTAKE, _INTERRUPTED, _NO_READER = 2, 130, 141


class _OutputError(FinerCAMError):
    """The standard output cannot be written."""


class _Results:
    """The standard output, whose failures are told from those of other files: an OSError alone would not name it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _naming_the_output():
            return self._stream.write(text)

    def flush(self) -> None:
        with _naming_the_output():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _naming_the_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputError(
            f"the standard output cannot be written ({system_reason(error)}); send it elsewhere, or make room."
        ) from None


@contextmanager
def _own_process() -> Iterator[None]:
    """Streams that are there and take any text, and no warnings of Pillow's about photographs that are read all the
    same; for a caller in Python all is as it was behind it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    # file names need not be text, nor class names in the encoding of the terminal
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream, _ in streams:
        stream.reconfigure(errors="backslashreplace")
    out, beside_user = sys.stdout, "" in sys.path
    sys.stdout = cast("TextIO", _Results(out))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        sys.stdout = out
        if not beside_user and "" in sys.path:  # for the model of py:, which no command gives back
            sys.path.remove("")
        with suppress(OSError):  # it writes what is left, and the reader may have gone
            for stream, errors in streams:
                stream.reconfigure(errors=errors)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that nothing half-written stays, where it has no other use."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@_own_process()
@_terminable()
def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: done, but some images could not be explained. 2: nothing done, the sentence on stderr says why.
    130: interrupted, or terminated. 141: the reader of the output went away before the end.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            args = _parser(arguments).parse_args(arguments, argparse.Namespace(arguments=arguments))
        except SystemExit:  # of --help and --version, too
            sys.stdout.flush()
            raise
        with _log_on_stderr():
            code: int = args.run(args)
        sys.stdout.flush()
        return code
    except FinerCAMError as error:
        if isinstance(error, _OutputError):
            _drop(sys.stdout)
        _complain(str(error))
        return _MISTAKE
    except MemoryError:
        _complain("this takes more memory than there is; ask for less at once, such as a smaller batch.")
        return _MISTAKE
    except KeyboardInterrupt:
        _complain("interrupted.")
        return _INTERRUPTED
    except BrokenPipeError:
        _drop(sys.stdout)  # its reader (`| head`) has gone
        return _NO_READER
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}{error.strerror or error}.")
        return _MISTAKE


def _drop(stream: TextIO) -> None:
    """Empty the buffer of a stream that cannot be written: the interpreter would try again, and complain, at exit."""
    with suppress(OSError):
        number = stream.fileno()
        kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, number)
            stream.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)
            os.close(nowhere)


def _complain(sentence: str) -> None:
    try:
        print(f"finercam: {sentence}", file=sys.stderr, flush=True)
    except OSError:  # the exit code still says it
        _drop(sys.stderr)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """What the runtime has to say while it works, as lines of the command."""
    log, handler = logging.getLogger(finercam_rt.__name__), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("finercam: %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finercam",
        description="Compile an image classifier with its Finer-CAM explanation into one graph, and run it.",
    )
    named = bool(arguments) and arguments[0] in COMMANDS
    # slow to look up, and no question behind a command
    version = "" if named else f"finercam {finercam_rt.__version__}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # Only the command that is asked for is imported; all of them where the user asks what there is.
    for name in arguments[:1] if named else COMMANDS:
        importlib.import_module(f"finercam_rt.cli.{name.replace('-', '_')}").add_parser(subparsers)
    return parser
