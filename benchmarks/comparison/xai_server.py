"""Runs in the environment of openvino-xai: MODEL METHOD THREADS PRECISION; requests and answers are lines of JSON.

Nothing of this project is imported here. {"bind": FILE} takes the images of an .npz file, {"run": 1} explains them and
answers with the CPU and wall seconds, {"save": FILE} explains them and writes the outputs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib import metadata
from typing import Any

import numpy as np


def main(model: str, method: str, threads: str, precision: str) -> None:
    # what libraries print must not be taken for an answer
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    logging.disable()
    try:
        explain, found = _load(model, method, int(threads), precision)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}".splitlines()[0]}), file=answers, flush=True)
        return
    print(json.dumps(found), file=answers, flush=True)
    images = np.empty(0, np.float32)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if "bind" in request:
                images = np.load(request["bind"])["images"]
            elif "save" in request:
                outputs = explain(images)
                np.savez(request["save"], logits=outputs["logits"], saliency_map=outputs["saliency_map"])
            else:
                wall, cpu = time.perf_counter(), time.process_time()
                explain(images)
                answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)


def _load(model: str, method: str, threads: int, precision: str) -> tuple[Any, dict[str, str]]:
    import openvino
    import openvino_xai

    core = openvino.Core()
    explained = openvino_xai.insert_xai(
        core.read_model(model),
        task=openvino_xai.Task.CLASSIFICATION,
        explain_method=getattr(openvino_xai.Method, method),
    )
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(explained, "CPU", options)
    request = compiled.create_infer_request()

    def explain(images: Any) -> Any:
        return request.infer(images, share_inputs=True)

    return explain, {name: metadata.version(name) for name in ("openvino", "openvino_xai", "numpy")}


if __name__ == "__main__":
    main(*sys.argv[1:])
