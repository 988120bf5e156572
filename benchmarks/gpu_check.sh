#!/usr/bin/env bash
# Everything there is to do on a machine with an NVIDIA GPU, in one go: builds for its architecture, times every op against
# PyTorch, runs the tests of the ops with cuda as device, and small cases under compute-sanitizer (memcheck, racecheck).
# Prints a table and ends with a line per step; exit status 0 if all went well.
#
#   benchmarks/gpu_check.sh                       PYTHON=python3 of an environment with a CUDA build of torch
#   benchmarks/gpu_check.sh --plan                prints the steps and runs nothing
#
# The steps share a budget of 8 minutes (BUDGET=480 seconds): a step that does not fit is cut short, and the summary says so.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-480}
PLAN=${1:-}
started=$SECONDS
failed=0
summary=()
tests=(tests/test_{activation,batch_norm,conv2d,cross_entropy,dropout,half,layer_norm,loss,matmul,pool2d,products,softmax}.py)

# step NAME SECONDS COMMAND...: runs the command within its share of the budget.
step() {
  local name=$1 most=$2 status begun=$SECONDS left
  shift 2
  left=$((BUDGET - (SECONDS - started)))
  if [ "$PLAN" = --plan ]; then
    printf '%-12s %4d s  %s\n' "$name" "$most" "$*"
    return
  fi
  if [ "$left" -lt 5 ]; then
    summary+=("$name: not run, the budget of $BUDGET s is spent")
    failed=1
    return
  fi
  echo "== $name"
  timeout $((left < most ? left : most)) "$@"
  status=$?
  case $status in
    0) summary+=("$name: ok, $((SECONDS - begun)) s") ;;
    124) summary+=("$name: CUT SHORT after $((SECONDS - begun)) s"); failed=1 ;;
    *) summary+=("$name: FAILED with status $status, $((SECONDS - begun)) s"); failed=1 ;;
  esac
}

if [ "$PLAN" != --plan ] && ! "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_check: $PYTHON has no torch that sees a GPU (set PYTHON to one that does)" >&2
  exit 2
fi

PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
step tools 60 "$PYTHON" -m pip install --quiet cmake ninja pybind11 setuptools wheel numpy pytest
DLKERNELS_CUDA=1 step build 240 "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
step check 60 "$PYTHON" benchmarks/gpu_check.py --small
step times 90 "$PYTHON" benchmarks/gpu_check.py
step tests 240 "$PYTHON" -m pytest -q --maxfail=20 --backend=cuda "${tests[@]}"
# Of our kernels alone (their mangled names have 3dlk). Memory is not cached, since neighbours of a cached tensor are valid.
sanitizer=(compute-sanitizer --kernel-regex kns=3dlk --error-exitcode 1 --report-api-errors no)
if [ "$PLAN" = --plan ] || command -v compute-sanitizer > /dev/null; then
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 step memcheck 60 "${sanitizer[@]}" --tool memcheck "$PYTHON" benchmarks/gpu_check.py --small --alone
  step racecheck 60 "${sanitizer[@]}" --tool racecheck "$PYTHON" benchmarks/gpu_check.py --small --alone
else
  summary+=("memcheck, racecheck: not run, compute-sanitizer was not found (on PATH, in CUDA_HOME or /usr/local/cuda)")
fi

[ "$PLAN" = --plan ] && exit 0
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
