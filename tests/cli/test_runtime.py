"""--backend and --device of the commands that load an engine."""

from __future__ import annotations

import pytest
from PIL import Image

from finercam_rt import _core
from finercam_rt.cli.main import main


@pytest.mark.parametrize("command", ["explain", "bench", "compare", "evaluate"])
def test_what_is_not_here_is_one_sentence(command, toy, tmp_path, capsys):
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    Image.new("RGB", (40, 40)).save(image)
    arguments = {
        "explain": [str(toy.path), str(image), "--json"],
        "bench": [str(toy.path)],
        "compare": [str(toy.path), str(toy.path), "--images", str(image)],
        "evaluate": [str(toy.path), "--data", str(image.parent), "-o", str(tmp_path / "out")],
    }[command]
    for options, says in (
        (["--backend", "tensorflow"], "there is no backend 'tensorflow'; choose one of auto"),
        (["--device", "gpu"], "there is no device 'gpu'; choose one of auto"),
        (["--backend", "tensorrt"], "is no TensorRT plan"),
        (["--backend", "openvino", "--device", "cuda"], "openvino runs on the CPU"),
    ):
        assert main([command, *arguments, *options]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    if not _core.cuda_status()[0]:
        for options in (["--device", "cuda"], ["--backend", "onnxruntime-tensorrt"]):
            assert main([command, *arguments, *options]) == 2
            assert "there is no CUDA device here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
