#!/usr/bin/env bash
# Every way of installing dlkernels, in a fresh venv: from the folder, editable, from a source distribution, and what
# must stop with one line. Usage: tests/install.sh [torch requirement]; a few minutes, two full builds.
set -euo pipefail
torch=${1:-torch==2.13.0}
source=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip"
$pip install --quiet "$torch" cmake ninja pybind11 setuptools wheel numpy
git clone --quiet "$source" "$work/clone"
cd "$work"

# Imports from anywhere but the source folder, runs kernels forward and backward.
smoke() {
  (cd / && "$work/venv/bin/python" -m dlkernels && "$work/venv/bin/python" - <<'PY'
import torch, dlkernels
model = dlkernels.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()))
model(torch.randn(2, 3, 9, 9)).sum().backward()
counts = dlkernels.counts()
assert counts and all(c["kernel"] and not c["fallback"] for c in counts.values()), counts
PY
  )
  echo "ok: $1"
}

# Runs a command that must fail and print a line matching a pattern.
must_stop() {
  local name=$1 pattern=$2
  shift 2
  if "$@" >"$work/log" 2>&1; then echo "FAILED: $name did not stop" && exit 1; fi
  grep -E "$pattern" "$work/log" || { cat "$work/log" && echo "FAILED: $name" && exit 1; }
  echo "ok: $name"
}

must_stop "plain pip install" "pip install --no-build-isolation ." $pip install --quiet "$work/clone"

$pip install --quiet --no-build-isolation "$work/clone"
smoke "pip install --no-build-isolation ."

info=$("$work/venv/bin/python" -c "import dlkernels._build_info as b; print(b.__file__)")
cp "$info" "$work/saved"
echo 'TORCH = "1.0.0"' >"$info"
must_stop "import with another torch" "ImportError: dlkernels was built with torch 1.0.0, but torch .* is running" \
  "$work/venv/bin/python" -c "import dlkernels"
cp "$work/saved" "$info"

$pip uninstall --quiet --yes dlkernels
$pip install --quiet --no-build-isolation --editable "$work/clone"
smoke "pip install --no-build-isolation -e ."

$pip uninstall --quiet --yes dlkernels
(cd "$work/clone" && "$work/venv/bin/python" setup.py --quiet sdist --dist-dir "$work/dist")
$pip install --quiet --no-build-isolation "$work"/dist/*.tar.gz
smoke "source distribution"
