"""cross_entropy of logits and classes: classifiers, language models, segmentation."""

import torch
from harness import Case, bench


def classes(x):
    """A class for each sample and position of x (N, C, ...)."""
    shape = x.shape[:1] + x.shape[2:]
    return (torch.arange(shape.numel()).reshape(shape) * 7 % x.shape[1],)


def cross_entropy(shape, quick=False, **options):
    label = "".join(f" {name}" for name in options)
    return Case(
        f"cross_entropy {'x'.join(map(str, shape))}{label}",
        lambda library, x, target: library.cross_entropy(x, target, **options),
        (shape,),
        classes,
        quick=quick,
    )


CASES = [
    cross_entropy((1024, 1000), quick=True),
    cross_entropy((1, 64)),
    cross_entropy((128, 10), quick=True),
    cross_entropy((97, 389)),
    cross_entropy((64, 50257)),
    cross_entropy((1024, 1000), label_smoothing=0.1),
    cross_entropy((8, 21, 65, 67)),
]

test_cross_entropy = bench(CASES)
