"""Pooling: ResNet's and VGG's max-pool, average pools, global average, in both memory formats."""

from harness import Case, bench

LAYOUTS = ("nchw", "nhwc")
X = (8, 64, 112, 112)


def pool2d(function, label, shape, *arguments, quick=(), **options):
    """A case for each layout. No backward pass of a pool needs the input."""
    for layout in LAYOUTS:
        yield Case(
            f"{function} {label} {'x'.join(map(str, shape))} {layout}",
            lambda library, x: getattr(library, function)(x, *arguments, **options),
            (shape,),
            channels_last=layout == "nhwc",
            backward_reads=False,
            quick=layout in quick,
        )


CASES = [
    *pool2d("max_pool2d", "3/2/1", X, 3, 2, 1, quick=LAYOUTS),
    *pool2d("max_pool2d", "2/2", X, 2, quick=["nchw"]),
    *pool2d("max_pool2d", "2/2", (64, 32, 28, 28), 2),
    *pool2d("max_pool2d", "2/2", (64, 6, 28, 28), 2),
    *pool2d("max_pool2d", "3/2 ceil", (3, 17, 37, 41), 3, 2, ceil_mode=True),
    *pool2d("max_pool2d", "3/1/1", (8, 192, 28, 28), 3, 1, 1),
    *pool2d("max_pool2d", "7", (8, 512, 7, 7), 7),
    *pool2d("max_pool2d", "2/2", (1, 1, 8, 8), 2),
    *pool2d("avg_pool2d", "2/2", X, 2, quick=["nchw"]),
    *pool2d("avg_pool2d", "3/2/1", (8, 64, 56, 56), 3, 2, 1),
    *pool2d("avg_pool2d", "2/2", (64, 6, 28, 28), 2),
    *pool2d("avg_pool2d", "3/2", (3, 17, 37, 41), 3, 2),
    *pool2d("avg_pool2d", "2/2", (1, 1, 8, 8), 2),
    *pool2d("adaptive_avg_pool2d", "1", X, 1, quick=["nchw"]),
    *pool2d("adaptive_avg_pool2d", "1", (8, 512, 7, 7), 1),
    *pool2d("adaptive_avg_pool2d", "1", (8, 2048, 7, 7), 1),
    *pool2d("adaptive_avg_pool2d", "7", (8, 512, 16, 16), 7),
    *pool2d("adaptive_avg_pool2d", "3", (1, 5, 13, 11), 3),
]

test_pool2d = bench(CASES)
