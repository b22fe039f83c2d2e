#!/usr/bin/env bash
#   3_sanitize.sh [memcheck] [racecheck] [initcheck]
# compute-sanitizer over the tests of the kernels, by default memcheck alone. Only our kernels are watched, and torch takes its memory from the
# driver for each tensor, so that a step beyond an array is seen. What was copied there counts as written.
source "$(dirname "$0")/common.sh"
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
FEWER='not (blend and (jet or gray))'  # colours change no address

watch() {  # watch TOOL SECONDS ARGUMENTS...
  local tool=$1 limit=$2 code=0
  shift 2
  limited "$limit" compute-sanitizer --tool "$tool" --kernel-regex kns=finercam --error-exitcode 9 \
    --log-file "$OUT/$tool.log" "$PYTHON" -m pytest -m gpu -q -x -p no:cacheprovider "$@" | tee "$KEPT/$tool.out" || code=$?
  tail -n 3 "$OUT/$tool.log"
  grep -Eq '[0-9]+ passed' "$KEPT/$tool.out" || { echo "no test has passed under $tool"; code=1; }
  return $code
}

memcheck() { watch memcheck 200 tests/kernels -k "$FEWER"; }
racecheck() { watch racecheck 170 tests/kernels -k "$FEWER"; }
# Inputs that a kernel of torch's has written count as not written, since that kernel is not watched.
initcheck() { watch initcheck 170 tests/kernels -k "$FEWER and not bgr and not captured_graph"; }

for tool in "${@:-memcheck}"; do
  step "$tool" "$tool"
done
finish
