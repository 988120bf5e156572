"""Convolutions of random shapes: in which is PyTorch faster? bench_conv2d.py has layers that people use; this finds
wrong choices of algorithm between them, and wrong results, since it checks them likewise.

    python benchmarks/sweep_conv2d.py [--seconds 60] [--threads 1] [--seed 0] [--worst 30]
"""

import argparse
import functools
import random
import statistics
import time

import torch
from bench_conv2d import conv2d
from harness import DF, TORCH, forward_run, loops_and_rounds, prepare, training_run

# Filters (height, width) and strides. Not 1 x 1 with stride 2, in whose gradients PyTorch 2.13 writes out of bounds.
FILTERS = (((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((7, 7), 2), ((3, 1), 1), ((1, 7), 1))
CHANNELS = (1, 3, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
SIZES, BATCHES = (7, 14, 15, 28, 30, 56), (1, 4, 8, 16)
PHASES = ("forward", "input grad", "weight grad")
MOST_FLOPS = 3e8
BUDGET, LEAST_ROUNDS = 0.02, 3  # seconds per phase


def draw_cases():
    """Of one random shape, in both layouts."""
    k, stride = random.choice(FILTERS)
    c_in, c_out = random.choice(CHANNELS), random.choice(CHANNELS)
    depthwise = {"groups": c_in} if k == (3, 3) and c_in == c_out else {}
    return conv2d(k, c_in, c_out, random.choice(SIZES), random.choice(BATCHES), stride, **depthwise)


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
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worst", type=int, default=30, help="lines to print")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(options.threads)
    results, end = [], time.monotonic() + options.seconds
    while time.monotonic() < end:
        for case in draw_cases():
            for phase in PHASES if case.flops <= MOST_FLOPS else ():
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
