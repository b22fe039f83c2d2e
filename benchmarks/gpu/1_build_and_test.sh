#!/usr/bin/env bash
# The package from its sources, for this GPU only; then the tests that need one. The models' graphs are exported beside
# the tests, on the CPU, and go on behind the end of this call.
source "$(dirname "$0")/common.sh"

build() {
  local capability
  capability=$(nvidia-smi --id=0 --query-gpu=compute_cap --format=csv,noheader | tr -d .) &&
  "$PYTHON" -m pip install --quiet --no-index --no-deps .gpu/tools/*.whl &&
  CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation \
    --config-settings=cmake.define.FINERCAM_CUDA=ON \
    --config-settings=cmake.define.FINERCAM_CUDA_ARCHITECTURES="${ARCHITECTURES:-$capability}" --editable . &&
  "$PYTHON" -c 'from finercam_rt import ops; print("kernels:", ops.cuda_status())'
}

export_in_background() {
  setsid nohup nice "$PYTHON" benchmarks/run.py --device cuda --export > "$KEPT/export.log" 2>&1 < /dev/null &
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
"$PYTHON" -m pip list 2> /dev/null | grep -Ei '^(torch|triton|timm|onnx|numpy|nanobind|scikit-build)' || true
step build build
step export export_in_background
step tests tested gpu-tests 300 --durations 5 \
  tests/kernels tests/runtime/test_cuda.py tests/tensorrt/test_gpu.py tests/benchmarks/test_gpu_clock.py
finish
