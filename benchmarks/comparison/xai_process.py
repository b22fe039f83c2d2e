"""openvino-xai, which needs versions of OpenVINO and NumPy of its own: a process of its environment, asked over pipes.

It must run in turn with the others, so it is started once, waits between its turns and times itself.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comparison.cases import GAP_CNN
from comparison.contenders import Answer, Bind, Bound, Setting

SERVER = Path(__file__).with_name("xai_server.py")


def openvino_xai(precision: str) -> Callable[[Setting], Bind]:
    """The map of the predicted class by its white-box method for the model: ReciproCAM, for transformers ViTReciproCAM.

    The layer is the one that it finds by itself. Its answer has the maps of all classes, of which one is taken.
    """

    def make(setting: Setting) -> Bind:
        if setting.openvino_xai is None or setting.scratch is None:
            raise FileNotFoundError("its environment is not there; run.py --help says how to make one")
        method = "RECIPROCAM" if setting.case.family == GAP_CNN else "VITRECIPROCAM"
        model = setting.graphs.graph("forward")
        server = _Server(setting.openvino_xai, [model, method, setting.threads, precision])
        file = setting.scratch / f"openvino_xai_{precision}.npz"

        def bind(batch: NDArray[np.float32]) -> Bound:
            np.savez(file, images=batch)
            server.ask(bind=str(file))

            def call() -> Answer:
                server.ask(save=str(file))
                with np.load(file) as content:
                    logits, maps = content["logits"], content["saliency_map"]
                return Answer(logits, maps[np.arange(len(logits)), logits.argmax(1)])

            def clock() -> tuple[float, float]:
                times = server.ask(run=1)
                return times["cpu"], times["wall"]

            return Bound(call, clock)

        return bind

    return make


class _Server:
    """The other process, which ends when its input does: with this object, or with this process."""

    def __init__(self, python: Path, arguments: list[object]) -> None:
        # isolated: neither this folder nor this process's PYTHONPATH may be found there
        command = [str(python), "-I", str(SERVER), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.started: dict[str, Any] = self._answer()

    def ask(self, **request: object) -> dict[str, Any]:
        """One request, one answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"its process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer
