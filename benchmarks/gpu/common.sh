# What the steps share; they source it. PYTHON: the interpreter that has PyTorch. OUT: where results go.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$PWD/build/gpu}
# Outside of the working tree, which each call may lay out anew.
KEPT=${KEPT:-${XDG_CACHE_HOME:-$HOME/.cache}/finercam-gpu}
mkdir -p "$OUT" "$KEPT/results"
cp -n .gpu/part-* "$KEPT" 2> /dev/null || true
cp -n .gpu/results/*.json "$KEPT/results" 2> /dev/null || true
cp "$KEPT"/results/*.json "$OUT" 2> /dev/null || true
FINERCAM_COMMIT=$(cat .gpu/commit 2> /dev/null || git rev-parse HEAD 2> /dev/null || true)
export FINERCAM_COMMIT PYTHONUNBUFFERED=1

# keep: what has been measured, for the next call.
keep() { cp "$OUT"/*.json "$KEPT/results" 2> /dev/null || true; }

# step NAME COMMAND...: run it with its time, and go on where it fails. In it `set -e` has no effect.
failed=()
step() {
  local name=$1 began=$SECONDS
  shift
  echo "== $name"
  "$@" || failed+=("$name")
  echo "== $name: $((SECONDS - began)) s"
}

# limited SECONDS COMMAND...: interrupted then, so that pytest says what it has seen; killed if it still goes on.
limited() { timeout --signal=INT --kill-after=10 "$@"; }

# tested NAME SECONDS ARGUMENTS...: pytest over what needs a GPU, with NAME.xml; where all is skipped there is none.
# A test of more than a minute says where it is, in case it never ends.
tested() {
  local name=$1 limit=$2 code=0
  shift 2
  limited "$limit" "$PYTHON" -m pytest -m gpu -q -p no:cacheprovider -o faulthandler_timeout=60 \
    --junitxml "$OUT/$name.xml" "$@" | tee "$KEPT/$name.log" || code=$?
  grep -Eq '[0-9]+ passed' "$KEPT/$name.log" || { echo "no test of $name has passed"; code=1; }
  return $code
}

# finish: say what failed; the exit code.
finish() {
  keep
  if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
  fi
  echo "all well"
}

# join: the packages that came in parts, unpacked once.
join() {
  if [[ ! -d $KEPT/site ]]; then
    (cd "$KEPT" && sha256sum --check --quiet < "$OLDPWD/.gpu/sums")
    mkdir "$KEPT/unpacking"
    # not by tar, which needs a program xz
    cat "$KEPT"/part-* | "$PYTHON" -c 'import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as packed:
    packed.extractall(sys.argv[1], filter="data")' "$KEPT/unpacking"
    # where onnxruntime looks for CUDA's libraries: beside itself
    ln -s "$("$PYTHON" -c 'import nvidia; print(list(nvidia.__path__)[0])')" "$KEPT/unpacking/nvidia"
    mv "$KEPT/unpacking" "$KEPT/site"
  fi
  export PYTHONPATH=$KEPT/site${PYTHONPATH:+:$PYTHONPATH}
}
