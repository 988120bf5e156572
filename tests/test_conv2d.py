"""conv1d, conv2d, conv_transpose2d: all passes in both memory formats, over shapes and options."""

import itertools
import random
from math import ceil

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, rand

import dlkernels.functional as DF

FORMATS = [torch.contiguous_format, torch.channels_last]


def operands(x, w, bias, dtype=torch.float32, x_format=torch.contiguous_format, w_format=torch.contiguous_format):
    inputs = [
        rand(*x, dtype=dtype).contiguous(memory_format=x_format),
        rand(*w, dtype=dtype, seed=1).contiguous(memory_format=w_format),
    ]
    if bias:
        inputs.append(rand(bias, dtype=dtype, seed=2))
    return [t.requires_grad_() for t in inputs]


def roundings(inputs, y):
    """Weight gradients sum over all pixels, values over a filter: allow a rounding per square root of the terms."""
    return 4 + max(y.numel() / y.shape[1], inputs[1][0].numel()) ** 0.5


def check_conv2d(inputs, options):
    y = F.conv2d(*inputs, **options)
    check(
        lambda *a: DF.conv2d(*a, **options),
        lambda *a: F.conv2d(*a, **options),
        inputs,
        op="conv2d",
        roundings=roundings(inputs, y),
    )


# x (N, C, H, W), w (K, C / groups, R, S), options
CASES = {
    "3x3": ((2, 16, 11, 13), (20, 16, 3, 3), {"padding": 1}),
    "one_channel": ((2, 1, 19, 23), (1, 1, 3, 3), {"padding": 1}),
    "one_channel_strided": ((2, 1, 19, 40), (1, 1, 3, 3), {"padding": 1, "stride": 2}),
    "3x3_wide": ((1, 35, 6, 40), (33, 35, 3, 3), {"padding": 1}),
    "1x1": ((3, 40, 7, 9), (70, 40, 1, 1), {}),
    "1x1_small_planes": ((12, 70, 7, 7), (66, 70, 1, 1), {}),
    "1x1_large": ((2, 12, 33, 31), (20, 12, 1, 1), {}),
    "1x1_many_pixels": ((2, 17, 33, 31), (100, 17, 1, 1), {}),
    "short_rows": ((3, 19, 9, 8), (21, 19, 3, 3), {"stride": 2, "padding": 1}),
    "1x1_few_outputs": ((3, 50, 33, 31), (7, 50, 1, 1), {}),
    "1x1_few_inputs": ((3, 7, 33, 31), (50, 7, 1, 1), {}),
    "1x1_one_output": ((2, 50, 13, 11), (1, 50, 1, 1), {}),
    "1x1_strided_large": ((2, 12, 65, 65), (8, 12, 1, 1), {"stride": 2}),  # at 64 x 66 PyTorch 2.13 itself crashes
    "1x1_strided": ((2, 12, 9, 9), (8, 12, 1, 1), {"stride": 2}),
    "1x1_strided_past_a_vector": ((2, 9, 8, 77), (35, 9, 1, 1), {"stride": (3, 2)}),
    "1x1_stride_3": ((2, 12, 9, 11), (8, 12, 1, 1), {"stride": (2, 3)}),
    "7x7_stride_2": ((2, 3, 31, 29), (10, 3, 7, 7), {"stride": 2, "padding": 3}),
    "joint_phases_of_rows": ((2, 2, 13, 10), (9, 2, 5, 4), {"stride": (2, 1), "padding": (2, 1)}),
    "joint_phases_one_channel": ((3, 1, 10, 13), (5, 1, 3, 5), {"stride": (2, 3), "padding": (1, 2)}),
    "joint_patches": ((3, 3, 26, 27), (10, 3, 6, 5), {"stride": (6, 5)}),
    "col2im": ((1, 19, 7, 6), (169, 19, 3, 3), {"padding": 1}),
    "col2im_images": ((3, 21, 12, 11), (130, 21, 4, 3), {"stride": (3, 2), "padding": (1, 2), "dilation": (1, 2)}),
    "col2im_patches": ((2, 3, 33, 34), (40, 3, 8, 8), {"stride": 8}),
    "col2im_padded": ((1, 5, 3, 4), (200, 5, 5, 5), {"padding": 4}),
    "weight_by_phases": ((2, 40, 17, 14), (3, 40, 3, 3), {"padding": 1}),
    "weight_by_phases_strided": ((2, 40, 17, 14), (3, 40, 5, 4), {"padding": (2, 3), "stride": (2, 3)}),
    "weight_by_phases_dilated": ((2, 40, 15, 20), (5, 40, 5, 4), {"padding": 2, "stride": 2, "dilation": (2, 1)}),
    "weight_by_phases_many_pixels": ((3, 40, 30, 31), (2, 40, 3, 3), {"padding": 1}),
    "weight_by_phases_of_rows": ((2, 40, 3, 40), (2, 40, 5, 5), {"padding": 2, "stride": (3, 2)}),
    "weight_by_phases_valid": ((3, 37, 13, 40), (1, 37, 7, 7), {"stride": (3, 2)}),
    "lenet_1": ((4, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "lenet_2": ((4, 6, 14, 14), (16, 6, 5, 5), {}),
    "5x5_padded": ((2, 6, 30, 30), (17, 6, 5, 5), {"padding": 2}),
    "5x5_groups": ((2, 24, 17, 30), (34, 12, 5, 5), {"groups": 2, "padding": (2, 0), "stride": (1, 2)}),
    "5x5_deep": ((2, 256, 27, 21), (20, 256, 5, 5), {"padding": 2}),
    "same_even_kernel": ((2, 5, 10, 12), (7, 5, 4, 2), {"padding": "same", "dilation": (1, 3)}),
    "valid": ((2, 5, 10, 12), (7, 5, 4, 2), {"padding": "valid"}),
    "dilated": ((2, 4, 15, 17), (5, 4, 3, 3), {"dilation": (2, 4), "padding": (2, 3)}),
    "strides_past_kernel": ((2, 4, 15, 17), (5, 4, 2, 2), {"stride": (3, 5)}),
    "padding_past_kernel": ((1, 2, 3, 3), (3, 2, 2, 2), {"padding": 4}),
    "groups": ((2, 12, 9, 10), (18, 4, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 37, 12, 19), (37, 1, 3, 3), {"groups": 37, "padding": 1}),
    "depthwise_5x5": ((2, 37, 12, 19), (37, 1, 5, 5), {"groups": 37, "padding": 2}),
    "depthwise_7x7": ((2, 37, 9, 19), (37, 1, 7, 7), {"groups": 37, "padding": 3}),
    "depthwise_3x3_stride_2": ((2, 37, 9, 19), (37, 1, 3, 3), {"groups": 37, "padding": 1, "stride": 2}),
    "depthwise_strided": ((2, 70, 12, 19), (70, 1, 5, 3), {"groups": 70, "padding": (2, 1), "stride": 2}),
    "depthwise_3x3_rows_of_vectors": ((3, 5, 33, 64), (5, 1, 3, 3), {"groups": 5, "padding": (0, 2)}),
    "depthwise_3x3_small_planes": ((9, 182, 7, 7), (182, 1, 3, 3), {"groups": 182, "padding": 1}),
    "depthwise_3x3_tall": ((2, 3, 150, 14), (3, 1, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise_3x3_stride_2_even": ((2, 8, 70, 66), (8, 1, 3, 3), {"groups": 8, "padding": (1, 2), "stride": 2}),
    "depthwise_3x3_stride_2_inside": ((3, 130, 14, 17), (130, 1, 3, 3), {"groups": 130, "stride": 2}),
    "depthwise_2x2": ((2, 9, 16, 19), (9, 1, 2, 2), {"groups": 9, "padding": (0, 1)}),
    "depthwise_2x2_stride_2": ((2, 9, 17, 37), (9, 1, 2, 2), {"groups": 9, "padding": (1, 0), "stride": 2}),
    "depthwise_2x2_stride_2_padded": ((2, 9, 17, 36), (9, 1, 2, 2), {"groups": 9, "padding": (0, 1), "stride": 2}),
    "depthwise_5x5_many_channels": ((2, 70, 5, 20), (70, 1, 5, 5), {"groups": 70, "padding": 2}),
    "depthwise_7x7_narrow_image": ((2, 70, 5, 4), (70, 1, 7, 7), {"groups": 70, "padding": 5}),
    "depthwise_padded_twice": ((2, 9, 8, 20), (9, 1, 3, 3), {"groups": 9, "padding": 3}),
    "depthwise_multiplier": ((2, 6, 9, 9), (18, 1, 3, 3), {"groups": 6, "padding": 1}),
    "narrow_groups": ((2, 36, 13, 17), (36, 4, 3, 3), {"groups": 9, "padding": 1}),
    "narrow_groups_strided": ((2, 35, 12, 19), (21, 5, 3, 2), {"groups": 7, "padding": 1, "stride": (2, 3)}),
    "narrow_groups_dilated": ((1, 24, 14, 70), (64, 3, 3, 3), {"groups": 8, "padding": 2, "dilation": (1, 3)}),
    "narrow_groups_widening": ((2, 17, 1, 5), (136, 1, 1, 3), {"groups": 17, "padding": (0, 1)}),
    "narrow_groups_small_planes": ((3, 64, 1, 1), (40, 8, 3, 3), {"groups": 8, "padding": 1}),
    "deep_sum": ((1, 300, 5, 5), (4, 300, 3, 3), {"padding": 1}),
    "winograd": ((3, 40, 17, 14), (37, 40, 3, 3), {"padding": 1}),
    "winograd_few_tiles": ((1, 36, 12, 9), (150, 36, 3, 3), {"padding": (0, 2)}),
    "winograd_wide": ((1, 20, 7, 600), (33, 20, 3, 3), {"padding": "same"}),
    "winograd_small_images": ((30, 33, 5, 3), (34, 33, 3, 3), {"padding": 1}),
    "winograd_dilated": ((2, 40, 19, 26), (37, 40, 3, 3), {"padding": (2, 4), "dilation": (2, 3)}),
    "winograd_dilated_few_tiles": ((1, 72, 21, 23), (150, 72, 3, 3), {"padding": 1, "dilation": (3, 1)}),
    "winograd_line": ((3, 68, 17, 30), (67, 68, 1, 3), {"padding": (0, 1)}),
    "winograd_long_line": ((3, 76, 31, 14), (67, 76, 7, 1), {"padding": (4, 0), "dilation": (2, 1)}),
    "winograd_line_few_tiles": ((1, 132, 9, 27), (150, 132, 1, 5), {"padding": (0, 2)}),
    "winograd_5x5": ((2, 40, 23, 19), (37, 40, 5, 5), {"padding": 2}),
    "winograd_4x6_dilated": ((2, 46, 30, 33), (34, 46, 4, 6), {"padding": (3, 5), "dilation": (1, 2)}),
    "winograd_7x7_few_tiles": ((1, 72, 17, 15), (150, 72, 7, 7), {"padding": 3}),
    "winograd_stride_2": ((2, 136, 64, 64), (150, 136, 3, 3), {"padding": 1, "stride": 2}),
    "winograd_4x4_stride_2": ((2, 40, 41, 41), (37, 40, 4, 4), {"padding": 1, "stride": 2}),
    "winograd_strides_differ": ((2, 72, 41, 60), (70, 72, 5, 6), {"padding": (2, 1), "stride": (2, 3)}),
    "winograd_stride_few_tiles": ((2, 200, 21, 32), (150, 200, 5, 5), {"padding": 2, "stride": 2}),
    "winograd_line_stride": ((1, 132, 9, 41), (150, 132, 1, 5), {"padding": (0, 2), "stride": (1, 2)}),
    "winograd_line_of_two": ((1, 200, 23, 41), (150, 200, 1, 4), {"padding": (0, 1), "stride": (1, 2)}),
    "winograd_2x2": ((2, 72, 22, 19), (70, 72, 2, 2), {"padding": (1, 0)}),
    "column_filter": ((3, 20, 13, 17), (35, 20, 7, 1), {"padding": (3, 0)}),
    "winograd_deep": ((1, 300, 9, 12), (40, 300, 3, 3), {"padding": 1}),
    "one_pixel": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    "large_kernel": ((1, 2, 30, 30), (2, 2, 19, 21), {"padding": 9}),
    "covers_image": ((5, 19, 5, 4), (35, 19, 5, 4), {"stride": (2, 1)}),
    "covers_image_one_output": ((33, 70, 4, 4), (1, 70, 4, 4), {}),
    "covers_image_one_channel": ((3, 1, 3, 7), (40, 1, 3, 7), {}),
    "empty_batch": ((0, 3, 8, 8), (4, 3, 3, 3), {}),
}


def skip_if_for_the_cpu(case, backend):
    if backend == "simt" and case.startswith(("winograd", "col2im", "weight_by_phases", "5x5_deep", "covers_image")):
        pytest.skip("for an algorithm of the CPU's kernels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", CASES)
def test_conv2d(case, x_format, bias, dtype, backend):
    skip_if_for_the_cpu(case, backend)
    x, w, options = CASES[case]
    inputs = operands(x, w, w[0] if bias else 0, dtype, x_format)
    check_conv2d(inputs, options)


@pytest.mark.parametrize("image", [(9, 8), (3, 3)], ids=["", "covers_image"])
@pytest.mark.parametrize("w_format", FORMATS, ids=["w_nchw", "w_nhwc"])
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_weight_formats(x_format, w_format, image):
    inputs = operands((2, 10, *image), (24, 10, 3, 3), 24, torch.float32, x_format, w_format)
    check(DF.conv2d, F.conv2d, inputs, op="conv2d", roundings=16)


@pytest.mark.parametrize("image, options", [(3, {}), (9, {"stride": 2}), (20, {"stride": 2}), (24, {"padding": 1})])
@pytest.mark.parametrize("x_format", FORMATS)
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_dense_weights_in_any_order(order, x_format, image, options):
    """Axes of the weights lie in memory in this order, outermost first; their gradient takes it too."""
    x, w = operands((2, 20, image, image), (40, 20, 3, 3), None, x_format=x_format)
    inverse = [order.index(axis) for axis in range(4)]
    w = w.detach().permute(order).contiguous().permute(inverse).requires_grad_()
    check_conv2d([x, w], options)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("order", list(itertools.permutations((0, 2, 3))), ids=str)
def test_depthwise_weights_in_any_order(order, stride):
    x, w = operands((2, 20, 9, 40), (20, 1, 3, 3), None)
    order = (*order, 1)
    inverse = [order.index(axis) for axis in range(4)]
    w = w.detach().permute(order).contiguous().permute(inverse).requires_grad_()
    check_conv2d([x, w], {"groups": 20, "stride": stride, "padding": 1})


@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(seed):
    """Any combination of options, in float32, against float64."""
    choose = random.Random(seed)
    groups, c, k = choose.choice([1, 1, 2, 5, 34]), choose.choice([1, 3, 16, 33]), choose.choice([1, 5, 37])
    if groups == 34:
        c, k = 1, choose.choice([1, 2])
    r, s = choose.choice([(1, 1), (3, 3), (2, 5), (5, 5)])
    options = {
        "stride": (choose.choice([1, 1, 2, 3]), choose.choice([1, 1, 2, 3])),
        "padding": (choose.randint(0, r), choose.randint(0, s)),
        "dilation": (choose.choice([1, 2]), choose.choice([1, 3])),
        "groups": groups,
    }
    size = (choose.randint(2 * r, 23), choose.randint(3 * s, 37))
    inputs = operands(
        (choose.choice([1, 2, 5]), c * groups, *size),
        (k * groups, c, r, s),
        k * groups,
        torch.float32,
        choose.choice(FORMATS),
        choose.choice(FORMATS),
    )
    check_conv2d(inputs, options)


@pytest.mark.parametrize("seed", range(40))
def test_random_narrow_groups(seed):
    """Groups of 1 to 8 channels on planes of 1 x 1 to 17 x 17, in float32 and float64, against float64."""
    choose = random.Random(seed)
    groups, c, k = choose.choice([2, 3, 7, 16, 33]), choose.randint(1, 8), choose.randint(1, 8)
    if seed % 2:
        c = k = choose.choice([1, c])
    r, s = choose.choice([(1, 1), (3, 3), (2, 5), (7, 7)])
    dilation = (choose.choice([1, 2]), choose.choice([1, 3]))
    reach = dilation[0] * (r - 1), dilation[1] * (s - 1)
    options = {
        "stride": (choose.choice([1, 1, 2, 3]), choose.choice([1, 1, 2, 3])),
        "padding": (ceil(reach[0] / 2), ceil(reach[1] / 2)),
        "dilation": dilation,
        "groups": groups,
    }
    inputs = operands(
        (choose.choice([1, 2, 5]), c * groups, choose.randint(1, 17), choose.randint(1, 17)),
        (k * groups, c, r, s),
        choose.choice([0, k * groups]),
        choose.choice([torch.float32, torch.float64]),
        choose.choice(FORMATS),
        choose.choice(FORMATS),
    )
    check_conv2d(inputs, options)


def test_nan_stays_in_its_group():
    """Lanes that a group leaves unused meet no channel of its neighbours."""
    for x_format in FORMATS:
        x = rand(1, 30, 5, 5).contiguous(memory_format=x_format)
        x[0, 4] = float("nan")
        y = DF.conv2d(x, rand(20, 3, 3, 3), padding=1, groups=10)
        assert y[0, 2:4].isnan().all() and y.isnan().sum() == 2 * 25


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("stride, column, taps", [(1, 19, [2]), (2, 19, []), (2, 18, [2])])
def test_inf_reaches_the_gradients_of_its_taps_only(stride, column, taps, x_format):
    """Depthwise: vectors of outputs end with some that there are not, whose windows would reach further."""
    x, w = operands((2, 3, 9, 20), (3, 1, 3, 3), None, x_format=x_format)
    with torch.no_grad():
        x[1, 1, 4, column] = float("inf")
    with kernel_ran("conv2d"):
        y = DF.conv2d(x, w, groups=3, stride=stride)
        dw = torch.autograd.grad(y, w, rand(*y.shape, seed=3))[0]
    infinite = ~dw.isfinite()
    assert not infinite[[0, 2]].any()
    assert [s for s in range(3) if infinite[1, ..., s].any()] == taps


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("stride", [1, 2])
def test_inf_reaches_the_inputs_of_its_window_only(stride, x_format):
    x, w = operands((2, 3, 9, 40), (3, 1, 3, 3), None, x_format=x_format)
    with kernel_ran("conv2d"):
        y = DF.conv2d(x, w, groups=3, stride=stride)
        dy = rand(*y.shape, seed=3)
        oh, ow = y.shape[2] - 1, y.shape[3] - 1
        dy[1, 1, oh, ow] = float("inf")
        dx = torch.autograd.grad(y, x, dy)[0]
    expected = torch.zeros_like(dx, dtype=torch.bool)
    expected[1, 1, oh * stride : oh * stride + 3, ow * stride : ow * stride + 3] = True
    assert torch.equal(~dx.isfinite(), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    inputs = [LAYOUTS[layout](t.detach()).requires_grad_() for t in operands((2, 6, 9, 8), (5, 6, 3, 3), 5)]
    check(DF.conv2d, F.conv2d, inputs, op="conv2d", roundings=16)


def test_unbatched_and_expanded_gradient():
    inputs = operands((6, 9, 8), (5, 6, 3, 3), 5)
    dy = rand(1, 1, 1).expand(5, 7, 6)
    check(DF.conv2d, F.conv2d, inputs, op="conv2d", dys=[dy], roundings=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "x, w, options",
    [
        ((2, 6, 50), (9, 6, 5), {"padding": 2, "stride": 2}),
        ((2, 6, 50), (8, 3, 5), {"padding": "same", "dilation": 3, "groups": 2}),
        ((6, 50), (6, 1, 4), {"groups": 6}),
        ((0, 6, 50), (9, 6, 5), {}),
    ],
    ids=["strided", "same", "depthwise_unbatched", "empty"],
)
def test_conv1d(x, w, options, dtype):
    inputs = operands(x, w, w[0], dtype)
    check(lambda *a: DF.conv1d(*a, **options), lambda *a: F.conv1d(*a, **options), inputs, op="conv1d", roundings=20)


TRANSPOSED = {
    "plain": ((2, 5, 6, 7), (5, 8, 3, 3), {}),
    "strided": ((2, 5, 6, 7), (5, 8, 4, 4), {"stride": 2, "padding": 1}),
    "output_padding": ((2, 5, 6, 7), (5, 8, 3, 3), {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)}),
    "dilated_groups": ((2, 6, 6, 7), (6, 4, 3, 2), {"dilation": (2, 3), "groups": 2, "output_padding": 1}),
    "1x1_strided": ((2, 5, 6, 19), (5, 8, 1, 1), {"stride": 2, "output_padding": 1}),
    "strides_past_kernel": ((1, 3, 4, 4), (3, 2, 2, 2), {"stride": 4, "output_padding": 3}),
    "depthwise": ((2, 20, 5, 6), (20, 1, 3, 3), {"groups": 20, "stride": 2}),
    "few_outputs": ((2, 9, 6, 7), (9, 2, 4, 4), {"stride": 2, "padding": 1}),
    "few_outputs_odd": ((2, 9, 6, 7), (9, 1, 5, 5), {"stride": (2, 3), "padding": 2, "output_padding": (1, 0)}),
    "col2im": ((2, 70, 3, 2), (70, 5, 4, 3), {"stride": (3, 2), "padding": 1, "output_padding": (2, 1)}),
    "col2im_strides_past_kernel": ((2, 33, 3, 4), (33, 3, 2, 2), {"stride": (5, 3), "output_padding": (4, 2)}),
    "from_one_pixel": ((5, 19, 1, 1), (19, 13, 4, 5), {"stride": (1, 2)}),
    "unbatched": ((5, 6, 7), (5, 8, 3, 3), {}),
    "empty_batch": ((0, 5, 6, 7), (5, 8, 3, 3), {}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_conv_transpose2d(case, x_format, dtype):
    x, w, options = TRANSPOSED[case]
    inputs = operands(x, w, w[1] * options.get("groups", 1), dtype)
    if len(x) == 4:
        inputs[0] = inputs[0].detach().contiguous(memory_format=x_format).requires_grad_()
    check(
        lambda *a: DF.conv_transpose2d(*a, **options),
        lambda *a: F.conv_transpose2d(*a, **options),
        inputs,
        op="conv_transpose2d",
        roundings=20,
    )


def test_conv_transpose2d_from_one_pixel_with_weights_channels_last():
    inputs = operands((5, 19, 1, 1), (19, 13, 4, 5), 13, w_format=torch.channels_last)
    inputs[0] = inputs[0].detach().as_strided((5, 19, 1, 1), (19, 1, 19, 19)).requires_grad_()  # channels_last, too
    check(DF.conv_transpose2d, F.conv_transpose2d, inputs, op="conv_transpose2d", roundings=20)


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=["", "strided"])
def test_depthwise_conv_transpose2d_without_bias(options, x_format):
    inputs = operands((2, 20, 5, 12), (20, 1, 3, 3), None, x_format=x_format)
    check(
        lambda *a: DF.conv_transpose2d(*a, groups=20, **options),
        lambda *a: F.conv_transpose2d(*a, groups=20, **options),
        inputs,
        op="conv_transpose2d",
        roundings=20,
    )


@pytest.mark.parametrize(
    "function, shapes, options",
    [
        (
            DF.conv2d,
            ((2, 4, 5, 6), (6, 2, 3, 2), (6,)),
            {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2},
        ),
        (DF.conv2d, ((1, 2, 5, 6), (3, 2, 2, 4), (3,)), {"padding": "same"}),
        (DF.conv2d, ((2, 3, 5, 5), (3, 1, 3, 3), (3,)), {"padding": 1, "groups": 3}),
        (DF.conv1d, ((2, 4, 9), (3, 4, 3), (3,)), {"stride": 2, "padding": 1, "dilation": 2}),
        (
            DF.conv_transpose2d,
            ((2, 4, 3, 4), (4, 2, 3, 2), (4,)),
            {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "groups": 2, "dilation": (2, 1)},
        ),
    ],
    ids=["conv2d", "same", "depthwise", "conv1d", "transposed"],
)
def test_gradcheck(function, shapes, options):
    inputs = [rand(*shape, dtype=torch.float64, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    check_gradients(lambda *a: function(*a, **options), inputs)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("function", [DF.conv2d, DF.conv_transpose2d])
def test_gradients_of_some(function, wanted):
    """Frozen operands: right gradients of the others, of second order too, and no input saved that none needs."""
    inputs = [rand(2, 4, 6, 5), rand(4, 4, 3, 3, seed=1), rand(4, seed=2)]
    inputs = [x.double().requires_grad_(w) for x, w in zip(inputs, wanted)]
    check(function, getattr(F, function.__name__), inputs, op=function.__name__, roundings=16)
    if not wanted[2]:  # the gradient to the bias is constant
        check_gradients(lambda *a: function(*a).sin(), inputs)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.data_ptr()) or x, lambda x: x):
        function(*inputs)
    assert (inputs[0].data_ptr() in saved) == wanted[1]


THREADED = [
    "3x3",
    "7x7_stride_2",
    "1x1_small_planes",
    "1x1_many_pixels",
    "1x1_few_outputs",
    "1x1_few_inputs",
    "1x1_strided_large",
    "weight_by_phases_strided",
    "covers_image",
    "lenet_2",
    "5x5_padded",
    "groups",
    "depthwise",
    "depthwise_3x3_small_planes",
    "depthwise_3x3_stride_2_even",
    "narrow_groups",
    "winograd",
    "winograd_few_tiles",
    "winograd_line_few_tiles",
    "winograd_5x5",
    "winograd_4x4_stride_2",
]


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", THREADED)
def test_threads(case, x_format, backend):
    skip_if_for_the_cpu(case, backend)
    x, w, options = CASES[case]
    inputs = operands((5, *x[1:]), w, w[0], torch.float32, x_format)
    check_threads(lambda *a: DF.conv2d(*a, **options), inputs)


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_threads_of_many_small_images(x_format, backend):
    """Whose rows share tiles."""
    if backend != "cpu":
        pytest.skip("the CPU's kernels, and large for others")
    inputs = operands((64, 16, 14, 14), (6, 16, 5, 5), 6, torch.float32, x_format)
    with kernel_ran("conv2d"):
        check_threads(lambda *a: DF.conv2d(*a, padding=2), inputs, max_threads=16)


def test_nan_spreads_to_its_window_only():
    x = rand(1, 3, 9, 9)
    x[0, 1, 4, 4] = float("nan")
    y = DF.conv2d(x, rand(2, 3, 3, 3), padding=1)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[3:6, 3:6] = True
    assert torch.equal(y[0, 0].isnan(), expected)


X, W = (2, 4, 8, 8), (6, 4, 3, 3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: DF.conv2d(rand(8, 8), rand(*W)), "3D .unbatched. or 4D .batched. input to conv2d.*size: .8, 8"),
        (lambda: DF.conv2d(rand(2, 5, 8, 8), rand(*W)), "expected input.*to have 4 channels, but got 5"),
        (lambda: DF.conv2d(rand(*X), rand(6, 4, 0, 3)), "kernel must not be empty"),
        (lambda: DF.conv2d(rand(*X), rand(6, 4, 9, 3)), "Kernel size can't be greater"),
        (lambda: DF.conv2d(rand(*X), rand(*W), stride=0), "stride must be positive.*got .0, 0"),
        (lambda: DF.conv2d(rand(*X), rand(*W), stride=-1), "stride must be positive"),
        (lambda: DF.conv2d(rand(*X), rand(*W), padding=-1), "padding must be non-negative"),
        (lambda: DF.conv2d(rand(*X), rand(*W), padding=2**40), "padding must be .*below 2.31"),
        (lambda: DF.conv2d(rand(*X), rand(*W), dilation=0), "dilation must be positive"),
        (lambda: DF.conv2d(rand(*X), rand(*W), groups=0), "groups must be positive"),
        (lambda: DF.conv2d(rand(*X), rand(6, 2, 3, 3), groups=4), "multiple of groups=4"),
        (lambda: DF.conv2d(rand(*X), rand(*W), rand(5)), "bias must have shape .6,.*got .5"),
        (lambda: DF.conv2d(rand(*X), rand(*W), stride=2, padding="same"), "not supported for strided"),
        (lambda: DF.conv2d(rand(*X), rand(*W), padding="full"), "'same', 'valid' or integers, got 'full'"),
        (lambda: DF.conv2d(rand(*X), rand(*W), stride=(1, 2, 3)), "stride must be an integer or 2 integers"),
        (lambda: DF.conv2d(rand(*X), rand(*W, dtype=torch.float64)), "type"),
        (lambda: DF.conv_transpose2d(rand(2, 6, 8, 8), rand(*W), output_padding=1), "output padding must be smaller"),
        (lambda: DF.conv_transpose2d(rand(2, 6, 1, 1), rand(*W), padding=2), "leaves no output"),
        (lambda: DF.conv1d(rand(4, 8, 8, 8), rand(6, 4, 3)), "2D .unbatched. or 3D"),
    ],
)
def test_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_compiled():
    inputs = operands((2, 3, 8, 8), (4, 3, 3, 3), 4)

    def function(x, w, b):
        return DF.conv_transpose2d(DF.conv2d(x, w, b, padding=1), w, stride=2).square().sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(function(*inputs), inputs)
    for a, b in zip(torch.autograd.grad(compiled(*inputs), inputs), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("outputs", [1, 8])
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_long_sums_of_equal_terms(x_format, outputs, backend):
    """Equal terms round the same way each time: sums over many pixels restart, so that this does not add up."""
    if backend != "cpu":
        pytest.skip("the CPU's kernels")
    x = torch.full((1, 32, 400, 400), 0.1).contiguous(memory_format=x_format)
    w = torch.zeros(outputs, 32, 1, 1, requires_grad=True)
    with kernel_ran("conv2d"):
        (dw,) = torch.autograd.grad(DF.conv2d(x, w).sum(), w)
    torch.testing.assert_close(dw.double(), torch.full_like(dw, 0.1).double() * 400**2, rtol=1e-5, atol=0)


def test_long_sums_of_equal_depthwise_terms(backend):
    if backend != "cpu":
        pytest.skip("the CPU's kernels")
    x, w = torch.full((1, 2, 1000, 1000), 0.1), torch.zeros(2, 1, 3, 3, requires_grad=True)
    with kernel_ran("conv2d"):
        (dw,) = torch.autograd.grad(DF.conv2d(x, w, groups=2).sum(), w)
    torch.testing.assert_close(dw.double(), torch.full_like(dw, 0.1).double() * 998**2, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "kernel, stride, dilation",
    [((3, 3), 1, 1), ((3, 3), 1, 2), ((1, 3), 1, 1), ((7, 1), 1, 2), ((5, 5), 1, 1), ((5, 5), 2, 1), ((4, 6), 1, 2)],
    ids=str,
)
@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_winograd_runs(x_format, kernel, stride, dilation, backend):
    """Small integers, whose sums GEMM computes exactly: Winograd's points leave a trace in every
    pass (but those of tiles of 2, which so many pixels do not take)."""
    if backend != "cpu":
        pytest.skip("the CPU's kernels")

    def integers(*shape):
        return torch.randint(-3, 4, shape).float().contiguous(memory_format=x_format)

    torch.manual_seed(0)
    padding = [dilation * (taps - 1) // 2 for taps in kernel]
    x, w = integers(6, 68, 18 * stride, 24 * stride), integers(68, 68, *kernel)
    dy = F.conv2d(x, w, None, stride, padding, dilation).sign()
    ops, geometry = torch.ops.dlkernels, [stride, stride, *[p for p in padding for _ in "ab"], dilation, dilation, 1]
    for op, arguments in (
        (ops.convolution, lambda x, w, dy: (x, w, None, geometry)),
        (ops.convolution_backward_input, lambda x, w, dy: (dy, w, None, x.shape, geometry)),
        (ops.convolution_backward_weight, lambda x, w, dy: (x, dy, w, geometry)),
    ):
        y, exact = op(*arguments(x, w, dy)), op(*arguments(x.double(), w.double(), dy.double()))
        assert (exact == exact.round()).all()
        error = (y - exact).abs().max()
        assert 0 < error < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("winograd")])
def test_winograd_cases_take_it(case, backend):
    """In one pass and format at least; the result of small integers shows it, as above."""
    if backend != "cpu":
        pytest.skip("the CPU's kernels")
    x_shape, w_shape, options = CASES[case]
    torch.manual_seed(0)
    errors = []
    for x_format in FORMATS:
        x, w = (torch.randint(-3, 4, shape).float().contiguous(memory_format=x_format) for shape in (x_shape, w_shape))
        inputs = [x.requires_grad_(), w.requires_grad_()]
        for pair in (inputs, [a.detach().double().requires_grad_() for a in inputs]):
            y = DF.conv2d(*pair, **options)
            errors.append([y, *torch.autograd.grad(y, pair, (y.detach() > 0).to(y.dtype))])
    pairs = [
        pair for ours, exact in zip(errors[::2], errors[1::2], strict=True) for pair in zip(ours, exact, strict=True)
    ]
    assert any((ours != exact).any() for ours, exact in pairs)


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="a setting of PyTorch 2.10 and later")
def test_accuracy_may_be_traded_for_speed(backend):
    """torch.backends.mkldnn.conv.fp32_precision = "tf32" lets convolutions take larger Winograd tiles."""
    if backend != "cpu":
        pytest.skip("the CPU's kernels")
    x, w = operands((4, 40, 18, 20), (40, 40, 3, 3), 0)
    dy, geometry = rand(4, 40, 18, 20, seed=3), [1, 1, 1, 1, 1, 1, 1, 1, 1]
    op = torch.ops.dlkernels.convolution_backward_input
    setting = torch.backends.mkldnn.conv
    before = setting.fp32_precision
    with torch.no_grad():
        accurate = op(dy, w, None, x.shape, geometry)
        try:
            setting.fp32_precision = "tf32"
            fast = op(dy, w, None, x.shape, geometry)
        finally:
            setting.fp32_precision = before
        exact = op(dy.double(), w.double(), None, x.shape, geometry)
    error = (accurate - exact).norm(), (fast - exact).norm()
    assert error[0] < error[1] < 2e-6 * exact.norm()
