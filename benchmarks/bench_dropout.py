"""dropout and dropout2d in training. The masks differ from PyTorch's, so that other checks apply."""

import math

from harness import Case, ResultError, bench


def verify(rate, whole_channels):
    """Every element (or channel) is zero or input / (1 - rate), about the right share of them, gradients alike."""

    def check(prepared, results):
        (x,), (y, dx), dy = prepared.leaves, results, prepared.dy
        kept = y != 0
        scale = 1 / (1 - rate)
        if not ((y - kept * x * scale).abs().max() <= 1e-6 and (dx - kept * dy * scale).abs().max() <= 1e-6):
            raise ResultError(f"{prepared.case.name}: an element or its gradient is neither dropped nor scaled")
        drawn = kept.flatten(2).any(2) if whole_channels else kept
        deviation = math.sqrt(drawn.numel() * rate * (1 - rate))
        if abs(drawn.sum().item() - drawn.numel() * (1 - rate)) > 6 * deviation + 1:
            raise ResultError(f"{prepared.case.name}: kept {drawn.sum().item()} of {drawn.numel()} at rate {rate}")

    return check


def dropout(shape, rate=0.5, function="dropout", layout="nchw", quick=False):
    return Case(
        f"{function} {rate} {'x'.join(map(str, shape))}{f' {layout}' if len(shape) == 4 else ''}",
        lambda library, x: getattr(library, function)(x, rate, True),
        (shape,),
        channels_last=layout == "nhwc",
        backward_reads=False,
        verify=verify(rate, function == "dropout2d"),
        quick=quick,
    )


X = (8, 64, 112, 112)

CASES = [
    dropout(X, quick=True),
    dropout(X, layout="nhwc"),
    dropout((64,)),
    dropout((64, 128), quick=True),
    dropout((128, 4096)),
    dropout((512, 3072), rate=0.1),
    dropout((64, 32, 28, 28), rate=0.25),
    dropout((3, 17, 37, 41), rate=0.25),
    dropout(X, function="dropout2d", quick=True),
    dropout(X, function="dropout2d", layout="nhwc"),
    dropout((64, 32, 14, 14), rate=0.25, function="dropout2d"),
    dropout((64, 32, 14, 14), rate=0.25, function="dropout2d", layout="nhwc"),
]

test_dropout = bench(CASES)
