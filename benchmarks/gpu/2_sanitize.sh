#!/usr/bin/env bash
# compute-sanitizer over the tests of the kernels. Only our kernels are watched, and torch takes its memory from the
# driver for each tensor, so that a step beyond an array is seen. What was copied there counts as written.
source "$(dirname "$0")/common.sh"
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
SLOWEST='224 or 130 or 2048 or 61 or 101'  # sizes that take long when every access is looked at

watch() {  # watch TOOL SECONDS ARGUMENTS...
  local tool=$1 limit=$2
  shift 2
  timeout "$limit" compute-sanitizer --tool "$tool" --kernel-regex kns=finercam --error-exitcode 9 \
    --log-file "$OUT/$tool.log" "$PYTHON" -m pytest -m gpu -q -x -p no:cacheprovider "$@" && tail -n 3 "$OUT/$tool.log"
}

memcheck() { watch memcheck 200 tests/kernels -k "not blend"; }
racecheck() { watch racecheck 170 tests/kernels -k "not blend and not ($SLOWEST)"; }
initcheck() { watch initcheck 170 tests/kernels -k "not blend and not ($SLOWEST)"; }

step memcheck memcheck
step racecheck racecheck
step initcheck initcheck
finish
