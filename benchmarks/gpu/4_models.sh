#!/usr/bin/env bash
# Engines in ONNX Runtime on the GPU: its tests, what a call costs, and models against the plain graph and other
# libraries. Needs all parts.
source "$(dirname "$0")/common.sh"
join
tail -n 3 "$KEPT/export.log" 2> /dev/null || true

models() {
  # so that it ends, some 40 s after its last case may begin, within a call of ten minutes
  "$PYTHON" benchmarks/run.py --device cuda --parts calls models --seconds "${SECONDS_LEFT:-$((540 - SECONDS))}" \
    --resume --output-folder "$OUT"
}

step tests tested onnxruntime-tests 120 tests/runtime/test_onnxruntime_gpu.py
step models models
finish
