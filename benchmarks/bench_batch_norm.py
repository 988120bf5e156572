"""batch_norm in training and evaluation: layers of the CNN, ResNet, MobileNetV2, in both memory formats."""

import torch
from harness import Case, bench

LAYOUTS = ("nchw", "nhwc")


def batch_norm(shape, training, quick=()):
    """A case for each layout, with weight, bias and running statistics. In evaluation, the forward pass counts."""

    def call(library, x, weight, bias, mean, var):
        return library.batch_norm(x, mean, var, weight, bias, training)

    def running_statistics(x, weight, bias):
        return torch.zeros_like(weight), torch.ones_like(bias)

    for layout in LAYOUTS if len(shape) == 4 else LAYOUTS[:1]:
        yield Case(
            f"batch_norm {'train' if training else 'eval'} {'x'.join(map(str, shape))} {layout}",
            call,
            (shape, shape[1:2], shape[1:2]),
            running_statistics,
            phases=("forward", "training") if training else ("forward",),
            channels_last=layout == "nhwc",
            quick=layout in quick,
        )


SHAPES = [
    (64, 32, 28, 28),
    (8, 256, 14, 14),
    (8, 512, 7, 7),
    (8, 144, 56, 56),
    (3, 17, 37, 41),
    (1, 3, 61, 67),
    (4, 4, 2, 2),
    (128, 256),
]
X = (8, 64, 112, 112)

CASES = [
    *batch_norm(X, True, quick=LAYOUTS),
    *batch_norm(X, False, quick=["nchw"]),
    *(case for shape in SHAPES for training in (True, False) for case in batch_norm(shape, training)),
]

test_batch_norm = bench(CASES)
