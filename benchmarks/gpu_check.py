"""Every CUDA kernel of dlkernels against PyTorch's (cuBLAS, cuDNN and its own): results, then times, in one table.

    python benchmarks/gpu_check.py            on a GPU, at sizes that fill it
    python benchmarks/gpu_check.py --small    each case once at a small size
    python benchmarks/gpu_check.py --small --alone    our kernels alone: for compute-sanitizer, whose racecheck some of
                                                      cuBLAS's do not survive (2025.3)
    python benchmarks/gpu_check.py --device simt --small    without a GPU: the same kernels on the CPU (no times)

Part of benchmarks/gpu_check.sh, which also builds and runs the tests.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import dlkernels
import dlkernels.functional as DF

ROUNDS = 15  # interleaved: PyTorch, dlkernels, PyTorch, ...
WARM_UP = 3
HALF = torch.float16
BOTH = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """call(namespace, *inputs) is compared; the inputs are random tensors of `shapes`, or of `small` ones."""

    name: str
    call: Callable
    shapes: list
    small: list
    dtypes: tuple = (torch.float32, HALF)
    channels_last: bool = False


def matmul(lib, a, b):
    return (torch if lib is F else lib).matmul(a, b)


def linear(lib, x, w):
    return lib.linear(x, w)


def conv2d(**options):
    return lambda lib, x, w: lib.conv2d(x, w, **options)


def batch_norm(lib, x, w, b):
    return lib.batch_norm(x, None, None, w, b, training=True)


def layer_norm(lib, x, w, b):
    return lib.layer_norm(x, w.shape, w, b)


def group_norm(lib, x, w, b):
    return lib.group_norm(x, 2 if len(w) < 32 else 32, w, b)


def cross_entropy(lib, x):
    return lib.cross_entropy(x, targets(x.size(0), x.size(1), x.device))


@functools.cache
def targets(count, classes, device):
    return torch.arange(count, device=device) % classes


def affine(*shape):
    """Shapes of an input and of its weight and bias per channel."""
    return [shape, (shape[1],), (shape[1],)]


CASES = [
    Case("matmul 4096", matmul, [(4096, 4096)] * 2, [(40, 40)] * 2, BOTH),
    Case("matmul 1024", matmul, [(1024, 1024)] * 2, [(40, 40)] * 2, (torch.float64,)),
    Case("linear 8192x1024x4096", linear, [(8192, 1024), (4096, 1024)], [(33, 24), (17, 24)], BOTH),
    Case("conv2d 3x3 64-64", conv2d(padding=1), [(64, 64, 56, 56), (64, 64, 3, 3)], [(2, 8, 7, 7), (8, 8, 3, 3)]),
    Case("conv2d 7x7/2 3-64", conv2d(stride=2, padding=3), [(64, 3, 224, 224), (64, 3, 7, 7)],
         [(1, 3, 17, 17), (8, 3, 7, 7)]),
    Case("conv2d depthwise 3x3", conv2d(padding=1, groups=256), [(64, 256, 28, 28), (256, 1, 3, 3)],
         [(2, 256, 5, 5), (256, 1, 3, 3)]),
    Case("conv2d 3x3 256-256 NHWC", conv2d(padding=1), [(64, 256, 14, 14), (256, 256, 3, 3)],
         [(2, 16, 7, 7), (16, 16, 3, 3)], BOTH, channels_last=True),
    Case("conv2d 1x1 256-64 NHWC", conv2d(), [(64, 256, 56, 56), (64, 256, 1, 1)], [(2, 16, 7, 7), (8, 16, 1, 1)],
         channels_last=True),
    Case("max_pool2d 3/2", lambda lib, x: lib.max_pool2d(x, 3, 2, 1), [(64, 64, 112, 112)], [(2, 3, 9, 9)]),
    Case("max_pool2d 3/2 NHWC", lambda lib, x: lib.max_pool2d(x, 3, 2, 1), [(64, 64, 112, 112)], [(2, 3, 9, 9)],
         channels_last=True),
    Case("avg_pool2d 2", lambda lib, x: lib.avg_pool2d(x, 2), [(64, 64, 112, 112)], [(2, 3, 8, 8)]),
    Case("adaptive_avg_pool2d 1", lambda lib, x: lib.adaptive_avg_pool2d(x, 1), [(64, 2048, 7, 7)], [(2, 3, 7, 7)]),
    Case("batch_norm", batch_norm, affine(64, 256, 28, 28), affine(2, 5, 7, 7)),
    Case("batch_norm NHWC", batch_norm, affine(64, 256, 28, 28), affine(2, 5, 7, 7), channels_last=True),
    Case("layer_norm 1024", layer_norm, affine(16384, 1024), affine(9, 33), BOTH),
    Case("group_norm 32", group_norm, affine(32, 256, 28, 28), affine(2, 6, 5, 5)),
    Case("softmax 1024", lambda lib, x: lib.softmax(x, -1), [(16384, 1024)], [(9, 33)], BOTH),
    Case("log_softmax 50257", lambda lib, x: lib.log_softmax(x, -1), [(1024, 50257)], [(9, 133)]),
    Case("cross_entropy 50257", cross_entropy, [(2048, 50257)], [(9, 33)]),
    Case("mse_loss", lambda lib, x, y: lib.mse_loss(x, y), [(4096, 4096)] * 2, [(9, 33)] * 2),
    Case("relu", lambda lib, x: lib.relu(x), [(4096, 16384)], [(9, 33)], BOTH),
    Case("gelu", lambda lib, x: lib.gelu(x), [(4096, 16384)], [(9, 33)], BOTH),
    Case("dropout", lambda lib, x: lib.dropout(x, 0.5), [(4096, 16384)], [(9, 33)]),
]  # fmt: skip


def make_inputs(case, small, dtype, device):
    torch.manual_seed(0)
    inputs = []
    for shape in case.small if small else case.shapes:
        x = torch.randn(shape, device=device).to(dtype)
        if case.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        inputs.append(x.requires_grad_())
    return inputs


def run(function, inputs, dy):
    """Output and gradients; dy is None for the forward pass alone."""
    if dy is None:
        with torch.no_grad():
            return [function(*inputs)]
    y = function(*inputs)
    return [y, *torch.autograd.grad(y, inputs, dy)]


def largest_difference(ours, theirs):
    """The largest difference of two lists of tensors, relative to the largest value of each (to the smallest normal one
    where all are below: gradients of a mean in half precision have a few bits); NaN if there is one."""
    differences = []
    for a, b in zip(ours, theirs, strict=True):
        tiny = torch.finfo(b.dtype).tiny
        a, b = a.detach().double(), b.detach().double()
        differences.append((a - b).abs().max() / b.abs().max().clamp_min(tiny))
    return torch.stack(differences).max().item()


def tolerance(dtype):
    """By how much two correct kernels may differ: sums in another order, TF32 in convolutions."""
    return {torch.float64: 1e-12, torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]


def milliseconds(function):
    """Time of one call on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def median_times(functions, inputs, dy):
    """Of each function, in interleaved rounds."""
    times = [[] for _ in functions]
    for i in range(WARM_UP + ROUNDS):
        for function, of_function in zip(functions, times, strict=True):
            elapsed = milliseconds(functools.partial(run, function, inputs, dy))
            if i >= WARM_UP:
                of_function.append(elapsed)
    return [statistics.median(of_function) for of_function in times]


def compare(case, dtype, small, device, alone):
    """One row of the table: the difference, and forward and forward + backward times of both."""
    inputs = make_inputs(case, small, dtype, device)
    ours, theirs = (functools.partial(case.call, library) for library in (DF, F))
    dy = torch.randn_like(ours(*inputs))
    results = run(ours, inputs, dy)
    row = {"case": case.name, "dtype": str(dtype).removeprefix("torch."), "difference": None}
    if case.name != "dropout" and not alone:  # whose masks differ from PyTorch's
        row["difference"] = largest_difference(results, run(theirs, inputs, dy))
    if device == "cuda":
        torch.cuda.synchronize()  # errors of kernels come late
    if not small:
        for name, gradient in (("forward", None), ("both", dy)):
            times = median_times([theirs, ours], inputs, gradient)
            row |= {f"{name} torch ms": times[0], f"{name} ours ms": times[1], f"{name} ratio": times[0] / times[1]}
    return row


def print_table(rows):
    def text(value):
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        print("| " + " | ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes, once, without times")
    parser.add_argument("--alone", action="store_true", help="with --small: no comparison with PyTorch's kernels")
    parser.add_argument("--device", choices=["cuda", "simt"], default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "simt":
        arguments.small = True
        assert dlkernels._C.use_simt(True), "dlkernels was built without csrc/simt: set DLKERNELS_SIMT=ON to build"
    else:
        if not torch.cuda.is_available():
            sys.exit("gpu_check: torch sees no GPU")
        properties = torch.cuda.get_device_properties(0)
        print(f"{properties.name}, compute capability {properties.major}.{properties.minor}, torch {torch.__version__}")
    dlkernels.reset_counts()
    rows, wrong = [], []
    for case in CASES:
        for dtype in case.dtypes:
            device = "cuda" if arguments.device == "cuda" else "cpu"
            row = compare(case, dtype, arguments.small, device, arguments.alone)
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
