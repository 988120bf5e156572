#!/usr/bin/env bash
# Everything there is to do on a machine with an NVIDIA GPU, in one go: builds for its architecture, runs the tests with
# cuda as device, the small cases under compute-sanitizer (memcheck, racecheck), and times every op against PyTorch.
# Ends with a table and a line per step; exit status 0 if all went well.
#
#   benchmarks/gpu_check.sh                       PYTHON=python3 of an environment with a CUDA build of torch
#   benchmarks/gpu_check.sh --plan                prints the steps and runs nothing
#
# The steps share a budget of 8 minutes (BUDGET=480 seconds): a step that would not fit is cut short and says so.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-480}
PLAN=${1:-}
started=$SECONDS
failed=0
summary=()

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

small="$PYTHON benchmarks/gpu_check.py --small"
step tools 60 "$PYTHON" -m pip install --quiet cmake ninja pybind11 setuptools wheel numpy pytest
DLKERNELS_CUDA=1 step build 240 "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
step check 60 "$PYTHON" benchmarks/gpu_check.py --small
if [ "$PLAN" = --plan ] || command -v compute-sanitizer > /dev/null; then
  step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 1 $small
  step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 $small
else
  summary+=("memcheck, racecheck: not run, compute-sanitizer was not found")
fi
step times 120 "$PYTHON" benchmarks/gpu_check.py
step tests 200 "$PYTHON" -m pytest -q -x --backend=cuda tests

[ "$PLAN" = --plan ] && exit 0
echo "== summary"
printf '%s\n' "${summary[@]}"
exit $failed
