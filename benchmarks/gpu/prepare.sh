#!/usr/bin/env bash
# Where there is a network: .gpu/, all that the machine with the GPU lacks, in parts that one transfer takes.
#   PYTHON=python3 benchmarks/gpu/prepare.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
VERSION=3.12        # Python's, of that machine
PART=50M            # with the sources a transfer stays below 64 MiB
LARGE=(onnxruntime-gpu==1.31.1)
TOOLS=(nanobind==3.1.0 scikit-build-core==1.1.2 torchcam==0.5.0 ttach==0.0.3)
SOURCES=(grad-cam==1.5.7)  # has no wheel

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${name}_x86_64")
done
only=(--no-deps --only-binary=:all: --implementation cp --python-version "$VERSION" "${platforms[@]}")
rm -rf .gpu/tools .gpu/wheels .gpu/site .gpu/part-*  # and not .gpu/results
mkdir -p .gpu/tools .gpu/wheels
"$PYTHON" -m pip download --quiet "${only[@]}" --dest .gpu/tools "${TOOLS[@]}"
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir .gpu/tools "${SOURCES[@]}"
"$PYTHON" -m pip download --quiet "${only[@]}" --dest .gpu/wheels "${LARGE[@]}"
"$PYTHON" -m pip install --quiet "${only[@]}" --target .gpu/site .gpu/wheels/*.whl
# a wheel's own compression is the weaker one: a fifth more
tar -c -C .gpu/site . | xz -6 -T0 | split --bytes "$PART" --numeric-suffixes --suffix-length 2 - .gpu/part-
(cd .gpu && sha256sum part-* > sums)
git rev-parse HEAD > .gpu/commit
rm -rf .gpu/site .gpu/wheels
ls -l .gpu .gpu/tools
