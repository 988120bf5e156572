"""layer_norm over the last dimension, and group_norm: transformers, U-Nets, ragged ones."""

from harness import Case, bench


def layer_norm(rows, width, quick=False):
    return Case(
        f"layer_norm {rows}x{width}",
        lambda library, x, weight, bias: library.layer_norm(x, (width,), weight, bias),
        ((rows, width), (width,), (width,)),
        quick=quick,
    )


def group_norm(shape, groups, quick=False):
    """A case for each layout."""
    for layout in ("nchw", "nhwc"):
        yield Case(
            f"group_norm {groups} {'x'.join(map(str, shape))} {layout}",
            lambda library, x, weight, bias: library.group_norm(x, groups, weight, bias),
            (shape, shape[1:2], shape[1:2]),
            channels_last=layout == "nhwc",
            quick=quick,
        )


CASES = [
    layer_norm(1024, 1000, quick=True),
    layer_norm(1, 64),
    layer_norm(512, 768),
    layer_norm(8192, 768),
    layer_norm(197, 389),
    layer_norm(64, 8192),
    layer_norm(50176, 96),  # ConvNeXt: 16 images of 56x56 positions
    *group_norm((8, 64, 112, 112), 32),
    *group_norm((8, 256, 28, 28), 32, quick=True),
    *group_norm((1, 6, 31, 37), 3),
    *group_norm((1, 4, 4, 4), 2),
]

test_layer_norm = bench(CASES)
