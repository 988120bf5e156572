"""Errors of PyTorch and of dlkernels against float64 on the same float32 inputs: writes docs/benchmarks/accuracy.md.

    python benchmarks/accuracy.py [-k NAME] [--output FILE]

The cases are those of the benchmarks that float64 can afford, and more convolutions by Winograd's algorithm, which
rounds differently. Every result of a case, output and gradients, is computed for four kinds of inputs.
"""

import argparse
import importlib
import itertools
import math
from pathlib import Path

import machine
import torch
from bench_conv2d import conv2d
from harness import CHEAP_ELEMENTS, DF, TORCH, Case, Prepared
from tables import arrows, table
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "docs" / "benchmarks" / "accuracy.md"
MOST_FLOPS = 1.2e9
ALLOWED = 2.0  # times PyTorch's error
ROUNDING = 2**-24  # relative error of a correctly rounded result, at most: smaller errors are never marked

RESULTS = ("output", "input grad", "weight grad", "bias grad")


def heavy_tailed(shape):
    """Student's t with three degrees of freedom: a few values are tens of times as large as most."""
    return torch.randn(shape) / torch.randn(3, *shape).square().mean(0).sqrt()


INPUTS = {
    "normal": torch.randn,
    "ReLU'd": lambda shape: torch.randn(shape).relu(),
    "mean 10": lambda shape: torch.randn(shape) + 10,
    "heavy-tailed": heavy_tailed,
}

# Channels, size, images: single small ones, which PyTorch sums best, and many pixels.
WINOGRAD = [
    *(
        case
        for channels, size, n in (
            *itertools.product((64, 128, 256, 512), (7, 14, 15), (1,)),
            *((64, 56, 2), (128, 28, 2), (256, 14, 4), (512, 7, 8)),
        )
        for case in conv2d(3, channels, channels, size, n=n)
    ),
    *(
        case
        for k in ((1, 3), (4, 1), (1, 5), (7, 1), 5)
        for channels, size, n in ((64, 56, 2), (128, 14, 1), (256, 14, 4), (512, 7, 8))
        for case in conv2d(k, channels, channels, size, n=n)
    ),
    *(
        case
        for k, stride in ((2, 1), (3, 2), (4, 2), (5, 2))
        for channels, size, n in ((64, 56, 2), (256, 28, 2))
        for case in conv2d(k, channels, channels, size, n=n, stride=stride)
    ),
]


def affordable(case):
    """Cases whose results do not depend on chance and whose float64 results take a second at most."""
    elements = max(math.prod(shape) for shape in case.shapes)
    return case.verify is None and case.op != "chain" and case.flops <= MOST_FLOPS and elements <= CHEAP_ELEMENTS


def cases():
    modules = [importlib.import_module(path.stem) for path in sorted(HERE.glob("bench_*.py"))]
    benchmarked = [case for module in modules for case in getattr(module, "CASES", [])]
    return [case for case in benchmarked if isinstance(case, Case) and affordable(case)] + WINOGRAD


# ---- Errors


def errors(y, exact):
    """RMS and largest error, relative to the RMS and the largest absolute value of the exact result."""
    difference = y.double() - exact
    return [
        (norm(difference) / norm(exact).clamp_min(1e-300)).item()
        for norm in (lambda x: x.square().mean().sqrt(), lambda x: x.abs().max())
    ]


def ratio(theirs, ours):
    """Ours over PyTorch's; an error of theirs below half a rounding counts as that much."""
    return ours / max(theirs, ROUNDING / 2)


def is_marked(theirs, ours):
    return not (ours <= ROUNDING or ratio(theirs, ours) <= ALLOWED)


def draws(prepared):
    """How many: the error of a result of few values is a matter of luck, that of a large one is not, except the largest
    one of Winograd's algorithm, which the largest inputs of a tile decide."""
    if sum(x.numel() for x in prepared.leaves) <= 1e5 and prepared.case.flops <= 1e7:
        return 16
    return 4 if prepared.dy.numel() == 1 or prepared.case in WINOGRAD else 1


def compare(case, draw):
    """Per result: ((RMS of PyTorch, of ours), (largest of PyTorch, of ours)), over all draws."""
    pooled = []
    for seed in range(draws(Prepared(case))):
        prepared = Prepared(case, draw, seed)
        exact = prepared.in_double().results(TORCH)
        both = zip(*(prepared.results(library) for library in (TORCH, DF)))
        pooled.append([[errors(y, reference) for y in pair] for pair, reference in zip(both, exact, strict=True)])
    of_draws = torch.tensor(pooled, dtype=torch.float64)  # draw, result, library, kind of error
    rms, largest = of_draws[..., 0].square().mean(0).sqrt(), of_draws[..., 1].amax(0)
    return torch.stack([rms, largest], 1).tolist()


def worst_inputs(case):
    """A line per result: its name, the kind of input with the largest ratio of ours to PyTorch's, and its errors."""
    by_inputs = {name: compare(case, draw) for name, draw in INPUTS.items()}
    for i, result in enumerate(RESULTS[: len(by_inputs["normal"])]):
        name = max(by_inputs, key=lambda n: max(ratio(*pair) for pair in by_inputs[n][i]))  # noqa: B023
        yield result, name, by_inputs[name][i]


# ---- Units in the last place

FUNCTIONS = {
    "sigmoid": lambda lib, x: lib.sigmoid(x),
    "tanh": lambda lib, x: lib.tanh(x),
    "silu": lambda lib, x: lib.silu(x),
    "elu": lambda lib, x: lib.elu(x),
    "softplus": lambda lib, x: lib.softplus(x),
    "gelu": lambda lib, x: lib.gelu(x),
    "gelu_tanh": lambda lib, x: lib.gelu(x, approximate="tanh"),
}
RANGE = (-87, 88)
GELU_TAIL = 1e-6


def wide_range():
    """Float32 values over RANGE, evenly spaced, and those near zero on a logarithmic scale."""
    small = torch.logspace(-30, 1, 200_000, dtype=torch.float64)
    return torch.cat([torch.linspace(*RANGE, 2_000_001, dtype=torch.float64), small, -small]).float()


def ulps(y, exact):
    """Errors in units of the last place of the exact result as a normal float32."""
    _, exponent = torch.frexp(exact.abs())
    return (y.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent.clamp_min(-125) - 24)


def ulp_line(name, function):
    x = wide_range()
    least = GELU_TAIL if "gelu" in name else torch.finfo(torch.float32).tiny
    x = x[function(TORCH, x.double()).abs() > least]
    exact = function(TORCH, x.double())
    cells = []
    for library in (TORCH, DF):
        error = ulps(function(library, x), exact)
        cells += [f"{error.max():.2f}", f"{x[error.argmax()]:.6g}"]
    return [name, *cells]


# ---- The report

METHOD = f"""\
Errors of float32 results against float64 ones of PyTorch from the same float32 inputs: root mean square, relative to
that of the exact result, and largest, relative to its largest absolute value; small ones over up to 16 draws. Each line
shows the worst of four kinds of inputs: {", ".join(INPUTS)} (weights and incoming gradients are normal). ▼ marks an
error of ours of more than {ALLOWED:g} times PyTorch's, unless it is no larger than one rounding, 2⁻²⁴.
"""

ULP_METHOD = f"""\
The largest error over 2.4 million inputs from {RANGE[0]} to {RANGE[1]}, where exp is a normal number, and the input
that has it. (gelu: where the result exceeds {GELU_TAIL:g} in size; below, PyTorch's own error grows without bound.)
"""
ULP_HEADER = ["function", "PyTorch", "at", "ours", "at"]


def error_cells(theirs, ours):
    text = f"{ratio(theirs, ours):.2f}"
    return [f"{theirs:.1e}", f"{ours:.1e}", f"**{text} ▼**" if is_marked(theirs, ours) else text]


def report(selected):
    lines, marked, total = {}, 0, 0
    for case in tqdm(selected, unit="case", dynamic_ncols=True):
        for result, inputs, pairs in worst_inputs(case):
            total += 1
            marked += any(is_marked(*pair) for pair in pairs)
            cells = [cell for pair in pairs for cell in error_cells(*pair)]
            lines.setdefault(case.op, []).append([arrows(case.name), result, inputs, *cells])
    header = ["case", "result", "inputs", "RMS, PyTorch", "ours", "ratio", "largest, PyTorch", "ours", "ratio"]
    here = machine.describe()
    about = "{processor}, {instruction set}; torch {torch}, dlkernels {dlkernels}. Made by `make accuracy`.".format(
        **here
    )
    parts = ["# Accuracy", about, METHOD, f"{marked} of {total} results are marked."]
    parts += [
        "## Activations, in units of the last place",
        ULP_METHOD,
        table(ULP_HEADER, [ulp_line(*item) for item in FUNCTIONS.items()]),
    ]
    parts += [part for op, of_op in lines.items() for part in (f"## {op}", table(header, of_op))]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    text = report([case for case in cases() if options.k in case.name])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)
    print(text.split("\n## ")[0], f"report: {options.output}", sep="\n\n")


if __name__ == "__main__":
    main()
