"""The manifest is read without onnx, and what is not an engine is refused in one sentence."""

from __future__ import annotations

import json
import os
import tracemalloc

import numpy as np
import pytest

from finercam_rt.errors import EngineError
from finercam_rt.manifest import from_json
from finercam_rt.onnx_metadata import read_manifest, read_onnx_metadata


def refused(path) -> str:
    with pytest.raises(EngineError) as caught:
        read_manifest(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert str(path) in text
    return text


def test_reads_what_onnx_reads(toy):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    for key, value in (("author", "π"), ("empty", ""), ("long", "x" * 100_000)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, toy.path)
    assert read_onnx_metadata(toy.path) == {entry.key: entry.value for entry in model.metadata_props}
    assert read_manifest(toy.path).model.name == "toy"


def test_metadata_before_the_graph_is_found(toy, tmp_path):
    """Protobuf fields may come in any order."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    front = onnx.ModelProto(ir_version=model.ir_version, metadata_props=model.metadata_props)
    rest = onnx.ModelProto(graph=model.graph, opset_import=model.opset_import)
    path = tmp_path / "reordered.onnx"
    path.write_bytes(front.SerializeToString() + rest.SerializeToString())
    assert read_manifest(path).model.name == "toy"


def test_the_graph_is_skipped_not_read(toy, tmp_path):
    """A sparse file of 3 GB, almost all of it a graph, costs no more than a small one."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(toy.path)
    length = 3 * 2**30
    varint = bytes((length >> shift & 0x7F) | 0x80 for shift in range(0, 28, 7)) + bytes([length >> 28])
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.write(bytes([8, 10, 7 << 3 | 2]) + varint)
        stream.seek(length, os.SEEK_CUR)
        stream.write(onnx.ModelProto(metadata_props=model.metadata_props).SerializeToString())
    tracemalloc.start()
    assert read_manifest(path).model.name == "toy"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_no_such_file(tmp_path):
    assert "no such file" in refused(tmp_path / "nothing.onnx")


def test_folder(tmp_path):
    assert "is a folder" in refused(tmp_path)


def test_empty(tmp_path):
    path = tmp_path / "empty.onnx"
    path.touch()
    assert "is empty" in refused(path)


NOT_ONNX = {
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(300),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(300),
    "zip": b"PK\x03\x04" + bytes(300),
    "text": b"hello, world\n" * 9,
    "json": b"{}",
    "zeros": bytes(64),
    "one byte": b"\x08",
    "version only": b"\x08\x0a",
    "random": np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("content", NOT_ONNX.values(), ids=NOT_ONNX)
def test_not_onnx(tmp_path, content):
    path = tmp_path / "wrong.onnx"
    path.write_bytes(content)
    assert "not an ONNX file" in refused(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_truncated(toy, share):
    content = toy.path.read_bytes()
    toy.path.write_bytes(content[: int(len(content) * share)])
    assert "truncated" in refused(toy.path)


def test_damaged_after_the_graph(toy):
    toy.path.write_bytes(toy.path.read_bytes() + b"\xff" * 20)
    assert "damaged" in refused(toy.path)


def test_onnx_that_is_not_ours(make_toy):
    text = refused(make_toy(metadata=None).path)
    assert "is an ONNX file without a finercam manifest" in text
    assert "finercam export" in text


def test_newer_schema(make_toy, toy):
    raw = json.loads(read_onnx_metadata(toy.path)["finercam"])
    raw["schema"] = 99
    text = refused(make_toy("newer.onnx", metadata=json.dumps(raw)).path)
    assert "schema 99" in text
    assert "upgrade" in text


def manifest_with(toy, **changes: str) -> str:
    """The toy's manifest; `changes` are JSON texts of fields."""
    raw = json.loads(read_onnx_metadata(toy.path)["finercam"])
    fields = {key: json.dumps(value) for key, value in raw.items()} | changes
    return "{" + ", ".join(f'"{key}": {text}' for key, text in fields.items()) + "}"


def test_a_manifest_with_a_field_written_anew_is_read(toy):
    assert from_json(manifest_with(toy, contrasts="1"), "x").model.name == "toy"


@pytest.mark.parametrize(
    "changes",
    [
        {"contrasts": "1e400"},
        {"producer": "[]"},
        {"producer": "7"},
        {"verification": "[" * 100_000},
        {"schema": "[" * 100_000 + "]" * 100_000},
    ],
    ids=lambda changes: " ".join(f"{key} {text[:9]}" for key, text in changes.items()),
)
def test_a_manifest_of_other_things_than_it_should_hold(toy, changes):
    with pytest.raises(EngineError) as caught:
        from_json(manifest_with(toy, **changes), "x.onnx")
    assert str(caught.value).startswith("x.onnx: its manifest ")
    assert str(caught.value).endswith("export the engine again.")


@pytest.mark.parametrize("name", ["n" * 300, "a\0b"], ids=["too long", "null character"])
def test_names_that_no_file_has(tmp_path, name):
    assert "cannot be read" in refused(tmp_path / name)


def test_manifest_that_is_not_json(make_toy):
    assert "not valid JSON" in refused(make_toy(metadata="{").path)
