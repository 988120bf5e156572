"""Random shapes: in which is PyTorch faster? bench_<op>.py has layers that people use; this finds wrong choices of
algorithm between them, and wrong results, since it checks them likewise.

    python benchmarks/sweep.py [conv2d] [matmul] [...] [--seconds 60] [--threads 1] [--seed 0] [--worst 30]
"""

import argparse
import functools
import math
import random
import statistics
import time
from random import choice

import torch
from bench_activation import activation
from bench_batch_norm import batch_norm
from bench_conv2d import conv2d
from bench_cross_entropy import cross_entropy
from bench_layer_norm import group_norm, layer_norm
from bench_matmul import linear, matmul
from bench_pool2d import pool2d
from bench_softmax import softmax
from harness import DF, TORCH, forward_run, loops_and_rounds, prepare, training_run

# Filters (height, width) and strides. Not 1 x 1 with stride 2, in whose gradients PyTorch 2.13 writes out of bounds.
FILTERS = (((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((7, 7), 2), ((3, 1), 1), ((1, 7), 1))
CHANNELS = (1, 3, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
SIZES, BATCHES = (7, 14, 15, 28, 30, 56), (1, 4, 8, 16)
ROWS, WIDTHS = (1, 3, 16, 64, 100, 128, 512, 1000), (1, 7, 10, 16, 64, 100, 128, 197, 389, 512, 768, 1000, 4096)
WINDOWS = ((2, 2), (3, 2, 1), (3, 1, 1), (3, 2), (5, 3), (7, 7))  # of pooling: size, stride, padding
ACTIVATIONS = ("relu", "leaky_relu", "elu", "sigmoid", "tanh", "gelu", "silu", "softplus")
MOST_FLOPS, MOST_ELEMENTS = 3e8, 4e6
BUDGET, LEAST_ROUNDS = 0.02, 3  # seconds per phase


def image():
    size = choice(SIZES)
    return choice(BATCHES), choice(CHANNELS), size, size


def draw_conv2d():
    k, stride = choice(FILTERS)
    c_in, c_out = choice(CHANNELS), choice(CHANNELS)
    depthwise = {"groups": c_in} if k == (3, 3) and c_in == c_out else {}
    return conv2d(k, c_in, c_out, choice(SIZES), choice(BATCHES), stride, alone=True, **depthwise)


def draw_pool2d():
    function = choice(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"))
    window = (choice((1, 2, 3, 7)),) if function.startswith("adaptive") else choice(WINDOWS)
    return pool2d(function, "/".join(map(str, window)), image(), *window)


def draw_group_norm():
    shape = image()
    return group_norm(shape, choice([groups for groups in range(1, shape[1] + 1) if shape[1] % groups == 0]))


def rows():
    return choice(ROWS), choice(WIDTHS)


# A random shape of each op, in both layouts (softmax, cross-entropy and activations: as they lie).
DRAW = {
    "conv2d": draw_conv2d,
    "matmul": lambda: [matmul((choice(WIDTHS), k := choice(WIDTHS)), (k, choice(WIDTHS)))],
    "linear": lambda: [linear(choice(ROWS), choice(WIDTHS), choice(WIDTHS))],
    "pool2d": draw_pool2d,
    "batch_norm": lambda: batch_norm(image(), choice((True, False))),
    "group_norm": draw_group_norm,
    "layer_norm": lambda: [layer_norm(*rows())],
    "softmax": lambda: [softmax(*choice(((image(), 1), (rows(), -1))), function=choice(("softmax", "log_softmax")))],
    "cross_entropy": lambda: [cross_entropy(choice((rows(), image())))],
    "activation": lambda: [activation(choice(ACTIVATIONS), choice((rows(), image())))],
}


def compare(case, phase):
    """PyTorch's and our median seconds, measured in turns."""
    prepared = prepare(case)
    timed = forward_run if phase == "forward" else functools.partial(training_run, prepared, phase)
    runs = [timed(functools.partial(prepared.call, library)) for library in (TORCH, DF)]
    loops, rounds = loops_and_rounds(runs, BUDGET, LEAST_ROUNDS)
    samples = [[run(loops)[-1] for run in runs] for _ in range(rounds)]  # of a gradient: without the forward pass
    return [statistics.median(of) for of in zip(*samples, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(DRAW)}; all if none is named")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worst", type=int, default=30, help="lines to print")
    options = parser.parse_args()
    if unknown := set(options.ops) - set(DRAW):
        parser.error(f"no such op: {', '.join(sorted(unknown))}")
    random.seed(options.seed)
    torch.set_num_threads(options.threads)
    results, end = [], time.monotonic() + options.seconds
    while time.monotonic() < end:
        for case in DRAW[choice(options.ops or list(DRAW))]():
            small = case.flops <= MOST_FLOPS and sum(map(math.prod, case.shapes)) <= MOST_ELEMENTS
            for phase in case.phases if small else ():
                torch_seconds, ours = compare(case, phase)
                results.append((torch_seconds / ours, f"{case.name} {phase}", torch_seconds, ours))
    results.sort()
    ratios = [result[0] for result in results]
    losses = sum(ratio < 1 for ratio in ratios)
    print(f"{len(ratios)} comparisons, geometric mean {statistics.geometric_mean(ratios):.2f}, {losses} below 1.0")
    for ratio, name, torch_seconds, ours in results[: options.worst]:
        print(f"{ratio:.2f}  {name}: {torch_seconds * 1e6:.0f} -> {ours * 1e6:.0f} us")


if __name__ == "__main__":
    main()
