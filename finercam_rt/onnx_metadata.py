"""The metadata, the manifest and single nodes of an ONNX file, read without onnx and without loading the graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from finercam_rt.errors import EngineError
from finercam_rt.files import opened, system_reason
from finercam_rt.manifest import METADATA_KEY, SOURCE_KEY, Manifest, from_json
from finercam_rt.tail_manifest import TAIL_KEY, TailManifest
from finercam_rt.tail_manifest import from_json as tail_from_json

# onnx.proto, messages ModelProto, GraphProto, NodeProto and StringStringEntryProto.
_IR_VERSION, _GRAPH, _METADATA_PROPS = 1, 7, 14
_NODE = 1
_NODE_NAME, _NODE_OPERATION, _NODE_METADATA_PROPS = 3, 4, 9
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_LARGEST_FIELD = 1000
"""ModelProto's fields end at 26; a number far above means that the bytes are something else."""
_LARGEST_ENTRY = 256 * 1024 * 1024


class OnnxNode(NamedTuple):
    """A node of the graph: its name, its operation, and where it comes from in PyTorch ("" where that is not known)."""

    name: str
    operation: str
    source: str


class _NotProtobufError(Exception):
    """The bytes do not parse as the top level of a ModelProto."""


class _TruncatedError(Exception):
    """The file ends inside a field."""


def read_onnx_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `metadata_props` of an ONNX file, as a dictionary.

    Walks the protobuf wire format of the top-level message and seeks over the graph, so a file of gigabytes costs as
    much as a small one. Source: onnx/onnx.proto; protobuf.dev, "Encoding".

    Raises:
        EngineError: no such file, a folder, empty, unreadable, not an ONNX file, or truncated.
    """
    file = Path(path)
    with opened(file, "the .onnx file that `finercam export` wrote") as stream:
        return _read_model(stream, os.fstat(stream.fileno()).st_size, file)


def _read_model(stream: BinaryIO, size: int, file: Path) -> dict[str, str]:
    if size == 0:
        raise EngineError(f"{file} is empty; export the engine again.")
    entries: dict[str, str] = {}
    has_version = has_graph = False
    try:
        while stream.tell() < size:
            number, wire = _read_tag(stream)
            if number == _IR_VERSION and wire == _VARINT:
                has_version = 0 < _read_varint(stream) < 10_000
            elif number == _METADATA_PROPS and wire == _LENGTH:
                key, value = _read_entry(_read_bytes(stream, _read_length(stream, size)))
                entries[key] = value
            else:
                has_graph |= number == _GRAPH and wire == _LENGTH
                _skip(stream, wire, size)
    except (_TruncatedError, _NotProtobufError) as error:
        # Arbitrary bytes also look cut off; a valid version number at the front tells a damaged model from them.
        if has_version and isinstance(error, _TruncatedError):
            raise EngineError(f"{file} is truncated; copy it or export it again.") from None
        if has_version and has_graph:
            raise EngineError(f"{file} is damaged after its graph; copy it or export it again.") from None
        raise EngineError(_not_onnx(file)) from None
    if not (has_version and has_graph):
        raise EngineError(_not_onnx(file))
    return entries


def _not_onnx(file: Path) -> str:
    return f"{file} is not an ONNX file; give the .onnx file that `finercam export` wrote."


def read_nodes(path: str | os.PathLike[str]) -> list[OnnxNode]:
    """The nodes of the graph, in order.

    Raises:
        EngineError: the file cannot be read, or is not an ONNX file.
    """
    file = Path(path)
    nodes: list[OnnxNode] = []
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            while stream.tell() < size:
                number, wire = _read_tag(stream)
                if number == _GRAPH and wire == _LENGTH:
                    _read_length(stream, size)  # what follows are the fields of the GraphProto, and nodes are no others
                elif number == _NODE and wire == _LENGTH:
                    length = _read_length(stream, size)
                    nodes.append(_read_node(stream, stream.tell() + length))
                else:
                    _skip(stream, wire, size)
    except (_TruncatedError, _NotProtobufError):
        raise EngineError(_not_onnx(file)) from None
    except OSError as error:
        raise EngineError(f"{file} cannot be read ({system_reason(error)}).") from None
    return nodes


def _read_node(stream: BinaryIO, end: int) -> OnnxNode:
    """One NodeProto."""
    texts = {_NODE_NAME: "", _NODE_OPERATION: ""}
    source = ""
    while stream.tell() < end:
        number, wire = _read_tag(stream)
        if number in texts and wire == _LENGTH:
            texts[number] = _read_bytes(stream, _read_length(stream, end)).decode("utf-8", "replace")
        elif number == _NODE_METADATA_PROPS and wire == _LENGTH:
            key, value = _read_entry(_read_bytes(stream, _read_length(stream, end)))
            source = value if key == SOURCE_KEY else source
        else:
            _skip(stream, wire, end)
    return OnnxNode(texts[_NODE_NAME], texts[_NODE_OPERATION], source)


def _read_entry(message: bytes) -> tuple[str, str]:
    """One StringStringEntryProto: (key, value)."""
    texts = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
    at = 0
    while at < len(message):
        tag, at = _varint_at(message, at)
        if tag & 7 != _LENGTH:
            raise _NotProtobufError
        length, at = _varint_at(message, at)
        if at + length > len(message):
            raise _NotProtobufError
        if tag >> 3 in texts:
            try:
                texts[tag >> 3] = message[at : at + length].decode("utf-8")
            except UnicodeDecodeError:
                raise _NotProtobufError from None
        at += length
    return texts[_ENTRY_KEY], texts[_ENTRY_VALUE]


def _varint_at(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _NotProtobufError
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _NotProtobufError


def _read_tag(stream: BinaryIO) -> tuple[int, int]:
    tag = _read_varint(stream)
    number, wire = tag >> 3, tag & 7
    if not 1 <= number <= _LARGEST_FIELD:
        raise _NotProtobufError
    return number, wire


def _read_varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise _TruncatedError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _NotProtobufError


def _read_length(stream: BinaryIO, size: int) -> int:
    length = _read_varint(stream)
    if stream.tell() + length > size:
        raise _TruncatedError
    return length


def _read_bytes(stream: BinaryIO, length: int) -> bytes:
    if length > _LARGEST_ENTRY:
        raise _NotProtobufError
    data = stream.read(length)
    if len(data) != length:
        raise _TruncatedError
    return data


def _skip(stream: BinaryIO, wire: int, size: int) -> None:
    if wire == _VARINT:
        _read_varint(stream)
        return
    if wire == _LENGTH:
        length = _read_length(stream, size)
    elif wire in (_FIXED64, _FIXED32):
        length = 8 if wire == _FIXED64 else 4
        if stream.tell() + length > size:
            raise _TruncatedError
    else:
        raise _NotProtobufError
    stream.seek(length, os.SEEK_CUR)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of an engine file, checked; see DESIGN, section 3.

    Raises:
        EngineError: what `read_onnx_metadata` refuses, no manifest in it, or one that this version cannot serve.
    """
    metadata = read_onnx_metadata(path)
    text = metadata.get(METADATA_KEY)
    if text is None and TAIL_KEY in metadata:
        raise EngineError(f"{Path(path)} is the tail of an engine; give the engine that was exported with it.")
    if text is None:
        raise EngineError(
            f"{Path(path)} is an ONNX file without a finercam manifest; make an engine with `finercam export`."
        )
    return from_json(text, str(Path(path)))


def read_tail_manifest(path: str | os.PathLike[str]) -> TailManifest:
    """The manifest of a tail file, checked.

    Raises:
        EngineError: what `read_onnx_metadata` refuses, no tail, or one that this version cannot serve.
    """
    text = read_onnx_metadata(path).get(TAIL_KEY)
    if text is None:
        raise EngineError(f"{Path(path)} is no tail file; give what `finercam export --head taps --tail FILE` wrote.")
    return tail_from_json(text, str(Path(path)))
