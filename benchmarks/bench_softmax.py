"""softmax and log_softmax over the last dimension and over the channels of images."""

from harness import Case, bench


def softmax(shape, dim=-1, function="softmax", layout="nchw", quick=False):
    label = f" dim {dim} {layout}" if dim != -1 else ""
    return Case(
        f"{function} {'x'.join(map(str, shape))}{label}",
        lambda library, x: getattr(library, function)(x, dim),
        (shape,),
        channels_last=layout == "nhwc",
        quick=quick,
    )


CASES = [
    softmax((1024, 1000), quick=True),
    softmax((1, 64)),
    softmax((128, 10)),
    softmax((97, 389)),
    softmax((12 * 128, 128)),  # attention: 12 heads of 128 queries
    softmax((64, 50257)),  # the vocabulary of GPT-2
    softmax((8, 64, 112, 112), 1, quick=True),
    softmax((8, 64, 112, 112), 1, layout="nhwc"),
    softmax((2, 21, 65, 67), 1),  # segmentation
    softmax((1024, 1000), function="log_softmax", quick=True),
    softmax((128, 10), function="log_softmax"),
    softmax((64, 50257), function="log_softmax"),
    softmax((8, 64, 112, 112), 1, function="log_softmax"),
]

test_softmax = bench(CASES)
