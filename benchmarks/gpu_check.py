"""Every CUDA kernel of dlkernels against PyTorch's (cuBLAS, cuDNN and its own): results, then times, in one table.

    python benchmarks/gpu_check.py            on a GPU, at sizes that fill it
    python benchmarks/gpu_check.py --small    each case once at a small size: for compute-sanitizer
    python benchmarks/gpu_check.py --device simt --small    without a GPU: the same kernels on the CPU (no times)

Part of benchmarks/gpu_check.sh, which also builds and runs the tests.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import dlkernels
import dlkernels.functional as DF

ROUNDS = 15  # interleaved: PyTorch, dlkernels, PyTorch, ...
WARM_UP = 3


@dataclass
class Case:
    """function(namespace)(*inputs) is timed; inputs are tensors of these shapes, times `small` at most in each size."""

    name: str
    function: Callable
    shapes: list
    small: list
    dtypes: tuple = (torch.float32, torch.float16)
    channels_last: bool = False
    backward: bool = True


def conv(**options):
    return lambda lib: lambda x, w: lib.conv2d(x, w, **options)


BOTH = (torch.float32, torch.float16, torch.bfloat16)
CASES = [
    Case("matmul 4096", lambda lib: torch.matmul if lib is F else lib.matmul, [(4096, 4096)] * 2, [(40, 40)] * 2, BOTH),
    Case("matmul 1024 float64", lambda lib: torch.matmul if lib is F else lib.matmul, [(1024, 1024)] * 2, [(40, 40)] * 2,
         (torch.float64,)),
    Case("linear 8192x1024x4096", lambda lib: lib.linear, [(8192, 1024), (4096, 1024)], [(33, 24), (17, 24)], BOTH),
    Case("conv2d 3x3 64-64 NCHW", conv(padding=1), [(64, 64, 56, 56), (64, 64, 3, 3)], [(2, 8, 7, 7), (8, 8, 3, 3)]),
    Case("conv2d 3x3 256-256", conv(padding=1), [(64, 256, 14, 14), (256, 256, 3, 3)], [(2, 16, 7, 7), (16, 16, 3, 3)],
         BOTH, channels_last=True),
    Case("conv2d 1x1 256-64", conv(), [(64, 256, 56, 56), (64, 256, 1, 1)], [(2, 16, 7, 7), (8, 16, 1, 1)],
         channels_last=True),
    Case("conv2d 7x7/2 3-64", conv(stride=2, padding=3), [(64, 3, 224, 224), (64, 3, 7, 7)], [(1, 3, 17, 17), (8, 3, 7, 7)]),
    Case("conv2d depthwise 3x3", conv(padding=1, groups=256), [(64, 256, 28, 28), (256, 1, 3, 3)], [(2, 256, 5, 5), (256, 1, 3, 3)]),
    Case("max_pool2d 3/2", lambda lib: lambda x: lib.max_pool2d(x, 3, 2, 1), [(64, 64, 112, 112)], [(2, 3, 9, 9)]),
    Case("avg_pool2d 2", lambda lib: lambda x: lib.avg_pool2d(x, 2), [(64, 64, 112, 112)], [(2, 3, 8, 8)]),
    Case("adaptive_avg_pool2d 1", lambda lib: lambda x: lib.adaptive_avg_pool2d(x, 1), [(64, 2048, 7, 7)], [(2, 3, 7, 7)]),
    Case("batch_norm", lambda lib: lambda x, w, b: lib.batch_norm(x, None, None, w, b, True), [(64, 256, 28, 28), (256,), (256,)],
         [(2, 5, 7, 7), (5,), (5,)]),
    Case("batch_norm NHWC", lambda lib: lambda x, w, b: lib.batch_norm(x, None, None, w, b, True), [(64, 256, 28, 28), (256,), (256,)],
         [(2, 5, 7, 7), (5,), (5,)], channels_last=True),
    Case("layer_norm 1024", lambda lib: lambda x, w, b: lib.layer_norm(x, (x.size(-1),), w, b), [(16384, 1024), (1024,), (1024,)],
         [(9, 33), (33,), (33,)], BOTH),
    Case("group_norm 32", lambda lib: lambda x, w, b: lib.group_norm(x, 2 if x.size(1) < 32 else 32, w, b), [(32, 256, 28, 28), (256,), (256,)],
         [(2, 6, 5, 5), (6,), (6,)]),
    Case("softmax 1024", lambda lib: lambda x: lib.softmax(x, -1), [(16384, 1024)], [(9, 33)], BOTH),
    Case("log_softmax 50257", lambda lib: lambda x: lib.log_softmax(x, -1), [(1024, 50257)], [(9, 133)]),
    Case("cross_entropy 50257", lambda lib: lambda x: lib.cross_entropy(x, torch.arange(x.size(0), device=x.device) % x.size(1)),
         [(2048, 50257)], [(9, 33)]),
    Case("mse_loss", lambda lib: lib.mse_loss, [(4096, 4096)] * 2, [(9, 33)] * 2),
    Case("relu", lambda lib: lib.relu, [(4096, 16384)], [(9, 33)], BOTH),
    Case("gelu", lambda lib: lib.gelu, [(4096, 16384)], [(9, 33)], BOTH),
    Case("dropout", lambda lib: lambda x: lib.dropout(x, 0.5), [(4096, 16384)], [(9, 33)]),
]  # fmt: skip


def make_inputs(case, small, dtype, device):
    torch.manual_seed(0)
    inputs = []
    for shape in case.small if small else case.shapes:
        x = torch.randn(shape, device=device).to(dtype)
        if case.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        inputs.append(x.requires_grad_(case.backward))
    return inputs


def run(function, inputs, dy):
    """Output and gradients; dy is None for the forward pass alone."""
    if dy is None:
        with torch.no_grad():
            return [function(*inputs)]
    y = function(*inputs)
    return [y, *torch.autograd.grad(y, inputs, dy)]


def largest_difference(ours, theirs):
    """The largest difference of two lists of tensors, relative to the largest value of each."""
    differences = []
    for a, b in zip(ours, theirs):
        a, b = a.detach().double(), b.detach().double()
        differences.append(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item())
    return max(differences)


def milliseconds(function, device):
    """Device time of one call."""
    if device != "cuda":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def compare(case, dtype, small, device):
    """One row of the table: the difference, and forward and forward + backward times of both."""
    inputs = make_inputs(case, small, dtype, "cuda" if device == "cuda" else "cpu")
    ours, theirs = case.function(DF), case.function(F)
    dy = torch.randn_like(theirs(*inputs))
    difference = None
    if case.name != "dropout":  # whose masks differ from PyTorch's
        difference = largest_difference(run(ours, inputs, dy), run(theirs, inputs, dy))
    else:
        run(ours, inputs, dy)
    if small:
        return {"case": case.name, "dtype": str(dtype)[6:], "difference": difference}
    row = {"case": case.name, "dtype": str(dtype)[6:], "difference": difference}
    for name, gradient in (("forward", None), ("both", dy)):
        times = {F: [], DF: []}
        for i in range(WARM_UP + ROUNDS):
            for library, function in ((F, theirs), (DF, ours)):
                elapsed = milliseconds(lambda f=function, g=gradient: run(f, inputs, g), device)
                if i >= WARM_UP:
                    times[library].append(elapsed)
        row[f"{name} torch"], row[f"{name} ours"] = (statistics.median(times[library]) for library in (F, DF))
    return row


def print_table(rows):
    columns = list(rows[0])
    for row in rows:
        for name in ("forward", "both"):
            if f"{name} ours" in row:
                row[f"{name} ratio"] = row[f"{name} torch"] / row[f"{name} ours"]
    columns = list(rows[0])
    text = [
        [f"{v:.3g}" if isinstance(v, float) else "-" if v is None else str(v) for v in row.values()] for row in rows
    ]
    widths = [max(len(line[i]) for line in [columns, *text]) for i in range(len(columns))]
    for line in [columns, ["-" * w for w in widths], *text]:
        print("| " + " | ".join(value.ljust(width) for value, width in zip(line, widths)) + " |")


def tolerance(dtype):
    """What the results of two correct kernels may differ by: sums of different order, TF32 in PyTorch's convolutions."""
    return {torch.float64: 1e-12, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, once, without times")
    parser.add_argument("--device", choices=["cuda", "simt"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "simt":
        assert dlkernels._C.use_simt(True), "dlkernels was built without csrc/simt: set DLKERNELS_SIMT=ON to build"
    else:
        properties = torch.cuda.get_device_properties(0)
        print(f"{properties.name}, compute capability {properties.major}.{properties.minor}, torch {torch.__version__}")
    dlkernels.reset_counts()
    rows, wrong = [], []
    for case in CASES:
        for dtype in case.dtypes:
            row = compare(case, dtype, arguments.small, arguments.device)
            rows.append(row)
            if row["difference"] is not None and not row["difference"] <= tolerance(dtype):
                wrong.append(f"{case.name} {dtype}: {row['difference']:.3g}")
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print_table(rows)
    fallbacks = {name: count["fallback"] for name, count in dlkernels.counts().items() if count["fallback"]}
    for line in [*(f"WRONG {w}" for w in wrong), *(f"PyTorch ran in our place: {f}" for f in fallbacks.items())]:
        print(line)
    sys.exit(1 if wrong or fallbacks else 0)


if __name__ == "__main__":
    main()
