#!/usr/bin/env bash
# simt_order.sh PYTHON ORDER TEST: a test file on the CUDA kernels under csrc/simt, with threads and blocks in this order; the
# summary, or on failure all that pytest printed. Exit status 255 stops xargs. gradcheck, which calls small kernels
# thousands of times and tests formulas rather than orders, runs in the order `forward` only, which is not the default.
# One thread of PyTorch each: threads that wait for each other spin, and these runs have the cores to share.
export OMP_NUM_THREADS=1
python=$1 order=$2 tests=$3
[ "$order" = forward ] && select=test || select="not gradcheck"
log=$(mktemp)
if DLKERNELS_SIMT_ORDER=$order "$python" -m pytest -q --backend=simt -k "$select" "$tests" > "$log" 2>&1; then
  echo "order $order, $tests: $(tail -n 1 "$log")"
else
  cat "$log"
  exit 255
fi
