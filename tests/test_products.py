"""Matrix products and convolutions where only the CUDA kernels have them: half precision, TF32, every instantiation.

float16 and bfloat16 follow the rule of test_half.py: operands are read as they are, summed in float32, and rounded
once. With TF32 allowed, operands in float32 are first rounded to 10 bits of mantissa: results are then as exact as
float32 sums of products of those. Depthwise convolutions take no part in that.
"""

import contextlib
import functools
import itertools
import re
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from test_conv2d import CASES, FORMATS, TRANSPOSED, operands
from test_half import HALVES, check_half, needs_kernels  # noqa: F401 (a fixture of this module's tests too)
from test_matmul import matrix
from util import LAYOUTS, _run, assert_close_to_exact, check, kernel_ran, rand

import dlkernels
import dlkernels.functional as DF


def roundings(*terms):
    """What sums of so many terms, in another order than PyTorch's, may be off by: errors grow like the root."""
    return 4 + max(terms) ** 0.5


def check_product(function, inputs, terms, parts=(), **options):
    """Half precision: DF.<function> against PyTorch's, for sums of at most `terms` products, forward and backward."""
    ours, theirs = (functools.partial(getattr(library, function), **options) for library in (DF, F_or_torch))
    name = f"{function} {[tuple(x.shape) for x in inputs]} {options}"
    check_half(name, ours, theirs, inputs, function, roundings=roundings(terms), parts=parts)


class F_or_torch:
    """Where PyTorch keeps its functions."""

    matmul = torch.matmul
    linear, conv1d, conv2d, conv_transpose2d = F.linear, F.conv1d, F.conv2d, F.conv_transpose2d


def leaves(*tensors):
    return [x.detach().requires_grad_() for x in tensors]


# ---- Matrix products in half precision

# M, N, K: tiles are 64 x 64 and 128 x 128, steps of K 32, instructions 16 x 8 x 16, copies 8 elements or one.
SIZES = [
    (1, 1, 0),
    (5, 7, 1),
    (1, 129, 8),
    (129, 1, 15),
    (16, 24, 16),
    (17, 23, 17),
    (63, 65, 31),
    (64, 64, 32),
    (65, 63, 33),
    (56, 72, 24),
    (127, 129, 9),
    (136, 120, 40),
    (24, 8, 600),  # splits of K
    (9, 17, 601),
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, a_transposed, b_transposed, dtype):
    m, n, k = size
    a = matrix(m, k, a_transposed, dtype=dtype, seed=1)
    b = matrix(k, n, b_transposed, dtype=dtype, seed=2)
    check_product("matmul", leaves(a, b), max(size))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    """Sizes that are multiples of 8: without the offset or the stride, copies are of 16 bytes."""
    lay = LAYOUTS[layout]
    a, b = lay(rand(3, 24, 40, dtype=dtype)), lay(rand(3, 40, 72, dtype=dtype, seed=1))
    check_product("matmul", leaves(a, b), 72)
    check_product("matmul", leaves(a[0], lay(b[0].t()).t()), 72)
    x, w, bias = a, lay(rand(16, 40, dtype=dtype, seed=2)), lay(rand(16, dtype=dtype, seed=3))
    check_product("linear", leaves(x, w, bias), 72)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "shapes, parts",
    [
        (((33,), (33,)), ()),
        (((9, 33), (33,)), ()),
        (((33,), (33, 9)), ()),
        (((2, 9, 33), (33, 5)), ()),
        (((5, 16, 8), (5, 8, 24)), ()),
        (((4, 24), (3, 24, 8)), (3, 0)),
        (((2, 1, 8, 16), (3, 16, 8)), (3, 2)),
        (((0, 3), (3, 2)), ()),
        (((2, 0), (0, 3)), ()),
        (((0, 4, 3), (0, 3, 2)), ()),
    ],
    ids=str,
)
def test_batches(shapes, parts, dtype):
    """`parts`: how many products, each rounded, the gradient of an operand that serves several batches is made of."""
    check_product("matmul", leaves(*(rand(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes))), 48, parts)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1, 8), (33, 7), (2, 3, 40), (0, 7), (130, 72), (2, 600)], ids=str)
def test_linear(shape, bias, dtype):
    shapes = [shape, (40, shape[-1]), (40,)][: 3 if bias else 2]
    check_product("linear", leaves(*(rand(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes))), 600)


# ---- Convolutions in half precision

# Channels that make whole copies of 16 bytes and those that do not, and what test_conv2d.py has no need of.
HALF_CASES = CASES | {
    "wide": ((2, 16, 9, 10), (24, 16, 3, 3), {"padding": 1}),
    "wide_strided": ((2, 16, 9, 10), (24, 16, 3, 3), {"padding": 1, "stride": 2, "dilation": (1, 2)}),
    "wide_groups": ((1, 32, 8, 8), (16, 16, 3, 3), {"groups": 2}),
    "wide_1x1": ((2, 24, 8, 8), (64, 24, 1, 1), {}),
    "wide_1x1_strided": ((2, 24, 8, 8), (16, 24, 1, 1), {"stride": 2}),
    "channels_not_wide": ((2, 12, 8, 8), (20, 12, 3, 3), {"padding": 1}),
    "inputs_not_wide": ((2, 12, 8, 8), (16, 12, 3, 3), {"padding": 1}),
    "outputs_not_wide": ((2, 16, 8, 8), (20, 16, 3, 3), {"padding": 1}),
    "kernel_past_image": ((2, 8, 3, 4), (8, 8, 5, 7), {"padding": (2, 3)}),
    "strides_past_image": ((2, 8, 5, 4), (8, 8, 2, 2), {"stride": 9}),
    "tile_of_pixels": ((1, 8, 8, 17), (72, 8, 2, 2), {"padding": 1}),
    "splits": ((4, 8, 24, 24), (8, 8, 3, 3), {"padding": 1}),
    "groups_to_one_channel": ((2, 12, 6, 7), (3, 4, 3, 3), {"groups": 3}),
    "depthwise_dilated": ((1, 8, 9, 10), (24, 1, 3, 2), {"groups": 8, "padding": 2, "dilation": 2, "stride": (1, 2)}),
}


def terms(x, w):
    """Of the longest sum: over pixels, a filter, or a filter of the input gradient."""
    taps = w[2] * w[3]
    return max(x[0] * x[2] * x[3], w[1] * taps, w[0] * taps)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", HALF_CASES)
def test_conv2d(case, x_format, dtype):
    x, w, options = HALF_CASES[case]
    check_product("conv2d", operands(x, w, w[0], dtype, x_format), terms(x, w), **options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("w_format", FORMATS, ids=["w_nchw", "w_nhwc"])
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", ["wide_strided", "wide_groups", "channels_not_wide", "depthwise_multiplier"])
def test_weight_formats(case, x_format, w_format, dtype):
    x, w, options = HALF_CASES[case]
    check_product("conv2d", operands(x, w, 0, dtype, x_format, w_format), terms(x, w), **options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["wide", "wide_1x1"])
def test_conv2d_layouts(case, layout, dtype):
    x, w, options = HALF_CASES[case]
    inputs = [LAYOUTS[layout](t.detach()) for t in operands(x, w, w[0], dtype)]
    check_product("conv2d", leaves(*inputs), terms(x, w), **options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "x, w, options",
    [
        ((2, 6, 50), (9, 6, 5), {"padding": 2, "stride": 2}),
        ((2, 16, 48), (8, 8, 5), {"padding": "same", "dilation": 3, "groups": 2}),
        ((6, 50), (6, 1, 4), {"groups": 6}),
        ((0, 6, 50), (9, 6, 5), {}),
    ],
    ids=["strided", "same", "depthwise_unbatched", "empty"],
)
def test_conv1d(x, w, options, dtype):
    check_product("conv1d", operands(x, w, w[0], dtype), 128, **options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", [*TRANSPOSED, "wide"])
def test_conv_transpose2d(case, x_format, dtype):
    x, w, options = {**TRANSPOSED, "wide": ((2, 16, 6, 7), (16, 8, 3, 3), {"stride": (2, 1), "padding": 1})}[case]
    inputs = operands(x, w, w[1] * options.get("groups", 1), dtype)
    if len(x) == 4:
        inputs[0] = inputs[0].detach().contiguous(memory_format=x_format).requires_grad_()
    check_product("conv_transpose2d", inputs, 512, **options)
