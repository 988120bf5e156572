"""The other losses: mse_loss, binary_cross_entropy_with_logits, nll_loss."""

import torch
from bench_cross_entropy import classes
from harness import Case, bench

SHAPES = [(64,), (128, 10), (97, 389), (64, 1, 28, 28), (8, 64, 112, 112)]


def targets(x):
    return (torch.sigmoid(2 * x.detach() - 0.5),)


def loss(function, shape, data=targets, quick=False):
    return Case(
        f"{function} {'x'.join(map(str, shape))}",
        lambda library, x, target: getattr(library, function)(x, target),
        (shape,),
        data,
        quick=quick,
    )


CASES = [
    *(loss("mse_loss", shape, quick=shape == SHAPES[-1]) for shape in SHAPES),
    *(loss("binary_cross_entropy_with_logits", shape, quick=shape == SHAPES[2]) for shape in SHAPES),
    *(loss("nll_loss", shape, classes) for shape in [(1, 64), (128, 10), (1024, 1000), (8, 21, 65, 67)]),
]

test_loss = bench(CASES)
