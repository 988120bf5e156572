"""matmul and linear: squares, the products of MLPs, transformers and classifiers, skinny and ragged ones."""

import math

from harness import Case, bench

SQUARES = [8, 31, 64, 127, 128, 256, 512, 1024, 2048]
QUICK = {64, 512}


def matmul(a, b, quick=False):
    """Batches of products: a (..., M, K), b (..., K, N)."""
    return Case(
        f"matmul {'x'.join(map(str, a))} {'x'.join(map(str, b))}",
        lambda library, a, b: library.matmul(a, b),
        (a, b),
        flops=2 * math.prod(a) * b[-1],
        peak=math.prod(a) * b[-1] >= 512**3,
        quick=quick,
    )


def linear(m, k, n, quick=False):
    return Case(
        f"linear {m}x{k} -> {n}",
        lambda library, x, w, b: library.linear(x, w, b),
        ((m, k), (n, k), (n,)),
        flops=2 * m * k * n,
        quick=quick,
    )


CASES = [
    *(matmul((n, n), (n, n), n in QUICK) for n in SQUARES),
    matmul((32, 10), (10, 128), quick=True),
    matmul((1, 4096), (4096, 4096), quick=True),
    matmul((4096, 4096), (4096, 1)),
    matmul((2048, 16), (16, 2048)),
    matmul((16, 2048), (2048, 16)),
    matmul((97, 389), (389, 211)),
    matmul((32, 64, 64), (32, 64, 64)),
    matmul((12, 128, 64), (12, 64, 128)),  # attention: queries times keys
    linear(128, 784, 256, quick=True),  # the MLP
    linear(128, 256, 10),
    linear(64, 3136, 128),  # the CNN
    linear(64, 400, 120),  # LeNet
    linear(8, 512, 1000),  # the classifier of ResNet-18
    linear(1, 2048, 1000),  # of ResNet-50, one image
    linear(256, 768, 2),  # of BERT, two classes
    linear(128, 4096, 1),  # a regression
    linear(512, 768, 3072, quick=True),  # a transformer's MLP
    linear(512, 3072, 768),
]

test_matmul = bench(CASES)
