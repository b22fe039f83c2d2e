#!/usr/bin/env bash
# The kernels' bandwidth beside a copy's, plain torch and torch.compile; then the forms of cam.
source "$(dirname "$0")/common.sh"

kernels() {
  "$PYTHON" benchmarks/run.py --device cuda --parts kernels sharing --seconds "${SECONDS_LEFT:-520}" --resume \
    --output-folder "$OUT"
}

step kernels kernels
finish
