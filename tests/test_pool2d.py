"""Pooling: values, gradients, indices, shape rules and errors, against PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_threads, kernel_ran, on_cpu, rand

import dlkernels.functional as DF

# options of max_pool2d; those of avg_pool2d are the ones without dilation
WINDOWS = [
    dict(kernel_size=2),
    dict(kernel_size=1, stride=2),
    dict(kernel_size=2, stride=1),
    dict(kernel_size=2, padding=1),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=1, padding=1),
    dict(kernel_size=(3, 2), stride=(1, 3), padding=(1, 0)),
    dict(kernel_size=[2], stride=[3]),
    dict(kernel_size=3, stride=2, ceil_mode=True),
    dict(kernel_size=2, stride=3, padding=1, ceil_mode=True),
    dict(kernel_size=5, stride=4, padding=2, ceil_mode=True),
    dict(kernel_size=(2, 7), stride=(7, 2), padding=(1, 3)),
    dict(kernel_size=5, stride=3, padding=2),
    dict(kernel_size=7),
    dict(kernel_size=(12, 13)),
    dict(kernel_size=(11, 24), stride=2, padding=(5, 12)),  # positions beyond a byte
]
DILATED = [
    dict(kernel_size=2, dilation=2),
    dict(kernel_size=3, stride=2, padding=1, dilation=(2, 3)),
    dict(kernel_size=(5, 2), stride=3, padding=(2, 1), dilation=(2, 1), ceil_mode=True),
]
AVERAGES = [
    *({**w, **more} for w in WINDOWS for more in ({}, {"count_include_pad": False}) if not more or "padding" in w),
    dict(kernel_size=3, padding=1, divisor_override=7),
    dict(kernel_size=2, divisor_override=-3),
]
ADAPTIVE = [1, 2, (3, 5), (7, 1), (1, 4), (None, 3), (5, None), (14, 28), (19, 23), (40, 3)]


def options_id(options):
    return ",".join(f"{k}={v}" for k, v in options.items()) if isinstance(options, dict) else str(options)


def make_cases():
    for options in WINDOWS + DILATED:
        yield pytest.param("max_pool2d", options, id=f"max:{options_id(options)}")
    for options in AVERAGES:
        yield pytest.param("avg_pool2d", options, id=f"avg:{options_id(options)}")
    for size in ADAPTIVE:
        yield pytest.param("adaptive_avg_pool2d", {"output_size": size}, id=f"adaptive:{size}")


CASES = list(make_cases())
all_ops = pytest.mark.parametrize("op,options", CASES)


def pytorch(op, options):
    """PyTorch's kernels of the CPU: those for CUDA and channels_last forget the padding in avg_pool2d's gradient, and
    say that the largest of a window of -Inf is element 0 (2.11)."""
    return on_cpu(lambda x: getattr(F, op)(x, **options))


def both(op, options):
    return lambda x: getattr(DF, op)(x, **options), pytorch(op, options)


SOME = [
    ("max_pool2d", dict(kernel_size=3, stride=2, padding=1)),
    ("max_pool2d", dict(kernel_size=3, stride=1, padding=1)),
    ("max_pool2d", DILATED[1]),
    ("max_pool2d", dict(kernel_size=5, stride=3, padding=2)),
    ("avg_pool2d", dict(kernel_size=2)),
    ("avg_pool2d", dict(kernel_size=3, stride=2, padding=1)),
    ("adaptive_avg_pool2d", {"output_size": (3, 5)}),
    ("adaptive_avg_pool2d", {"output_size": 1}),
]
some_ops = pytest.mark.parametrize("op,options", SOME, ids=[f"{op}:{options_id(options)}" for op, options in SOME])


@pytest.mark.parametrize(
    "layout,dtype",
    [*((layout, torch.float32) for layout in LAYOUTS), ("contiguous", torch.float64), ("channels_last", torch.float64)],
)
@all_ops
def test_options(op, options, layout, dtype):
    ours, theirs = both(op, options)
    check(ours, theirs, [LAYOUTS[layout](rand(2, 5, 14, 28, dtype=dtype)).requires_grad_()], op=op, roundings=8)


@all_ops
def test_unbatched(op, options):
    ours, theirs = both(op, options)
    check(ours, theirs, [rand(3, 13, 17).requires_grad_()], op=op)
    # a channels_last image of a batch: 3-D outputs are contiguous all the same
    batch = LAYOUTS["channels_last"](rand(2, 3, 13, 17))
    check(ours, theirs, [batch[1].requires_grad_()], op=op)


@some_ops
def test_ragged_sizes(op, options):
    ours, theirs = both(op, options)
    for width in [*range(5, 37), 63, 64, 65, 66, 129]:
        check(ours, theirs, [rand(1, 2, 5, width).requires_grad_()], op=op)
    for channels in [*range(1, 20), 31, 32, 33, 67]:
        check(ours, theirs, [LAYOUTS["channels_last"](rand(2, channels, 5, 6)).requires_grad_()], op=op)


@pytest.mark.parametrize("channels", [6, 17, 24, 63, 64, 70])
@pytest.mark.parametrize("op,options", [c for c in CASES if c.values[0] != "adaptive_avg_pool2d"])
def test_pixels_of_partial_vectors(op, options, channels):
    ours, theirs = both(op, options)
    check(ours, theirs, [LAYOUTS["channels_last"](rand(2, channels, 37, 26)).requires_grad_()], op=op, roundings=8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@some_ops
def test_several_bands_of_a_plane(op, options, layout):
    ours, theirs = both(op, options)
    check(ours, theirs, [LAYOUTS[layout](rand(1, 2, 301, 517)).requires_grad_()], op=op, roundings=8)


@some_ops
def test_empty_batch(op, options):
    check(*both(op, options), [rand(0, 3, 8, 8).requires_grad_()], op=op)


@pytest.mark.parametrize(
    "op,options",
    [
        ("max_pool2d", dict(kernel_size=3, stride=2, padding=1)),
        ("avg_pool2d", dict(kernel_size=3, stride=2, padding=1, count_include_pad=False)),
        ("adaptive_avg_pool2d", dict(output_size=3)),
    ],
)
def test_one_pixel(op, options):
    check(*both(op, options), [rand(2, 3, 1, 1).requires_grad_()], op=op)


def test_adaptive_to_nothing():
    for size in (0, (0, 3)):
        y = DF.adaptive_avg_pool2d(rand(2, 3, 6, 6).requires_grad_(), size)
        assert y.shape == F.adaptive_avg_pool2d(rand(2, 3, 6, 6), size).shape
        y.sum().backward()  # PyTorch's raises
    check(*both("adaptive_avg_pool2d", {"output_size": 2}), [rand(2, 0, 6, 6)], op="adaptive_avg_pool2d")


def special_values():
    """Ties, signed zeros, NaN and infinities, and whole windows of them."""
    x = (2 * rand(2, 5, 14, 17)).round()
    x[0, 0, 3, 4] = x[0, 0, 3, 5] = x[1, 2, 0, 0] = x[1, 2, 6, 6] = float("nan")
    x[0, 1, 2:4] = float("inf")
    x[0, 2] = -float("inf")
    x[1, 1, :, 5:12] = -float("inf")
    x[1, 3] = float("nan")
    x[1, 4] = torch.where(x[1, 4] > 0, 0.0, -0.0)
    return x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", WINDOWS + DILATED, ids=options_id)
def test_max_ties_nan_and_infinities(options, dtype, layout):
    """The same element wins as in PyTorch: equal values, indices, and gradients' places."""
    x = LAYOUTS[layout](special_values().to(dtype))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    with kernel_ran("max_pool2d"):
        y, indices = DF.max_pool2d(inputs[0], **options, return_indices=True)
    their_y, their_indices = pytorch("max_pool2d", {**options, "return_indices": True})(inputs[1])
    torch.testing.assert_close(y, their_y, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(indices, their_indices)
    assert indices.dtype == torch.int64 and not indices.requires_grad
    assert indices.stride() == their_indices.stride()
    dy = rand(*y.shape, dtype=dtype)
    y.backward(dy)
    their_y.backward(dy)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert torch.equal(inputs[0].grad == 0, inputs[1].grad == 0)
    with torch.no_grad():
        torch.testing.assert_close(DF.max_pool2d(x, **options), their_y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "op,options",
    [("avg_pool2d", dict(kernel_size=3, stride=2, padding=1)), ("adaptive_avg_pool2d", dict(output_size=(3, 4)))],
)
def test_average_of_nan_and_infinities(op, options, layout):
    ours, theirs = both(op, options)
    x = LAYOUTS[layout](special_values())
    with kernel_ran(op):
        y = ours(x)
    assert torch.equal(y.isnan(), theirs(x).isnan())
    torch.testing.assert_close(y, theirs(x), equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_window_wholly_in_the_padding(layout):
    """Rows -1 and 2 of a 2-row image: -Inf, index -1 and no gradient (PyTorch's index lies outside the plane)."""
    options = dict(kernel_size=(2, 1), padding=(1, 0), dilation=(3, 1), stride=(2, 1), ceil_mode=True)
    x = LAYOUTS[layout](rand(2, 3, 2, 4)).requires_grad_()
    y, indices = DF.max_pool2d(x, **options, return_indices=True)
    assert torch.equal(y, F.max_pool2d(x.detach(), **options))
    assert torch.equal(indices, torch.full_like(indices, -1))
    for create_graph in (False, True):
        (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True, create_graph=create_graph)
        assert torch.equal(dx, torch.zeros_like(x))


def test_indices_unpool():
    x = rand(2, 3, 8, 8)
    with kernel_ran("max_pool2d"):
        y, indices = DF.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(
        F.max_unpool2d(y, indices, 2) != 0, F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2) != 0
    )


@pytest.mark.parametrize(
    "options", [dict(kernel_size=(17, 16)), dict(kernel_size=5, stride=3, padding=2)], ids=options_id
)
def test_short_rows_of_many_planes(options):
    """More planes than a vector has lanes, and positions beyond a byte."""
    ours, theirs = both("max_pool2d", options)
    inputs = [rand(3, 19, 17, 16, dtype=torch.float32).requires_grad_()]
    check(ours, theirs, inputs, op="max_pool2d")
    check_threads(ours, inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@all_ops
def test_gradcheck(op, options, layout):
    # distinct values far apart, so that a finite difference does not change which is greatest
    x = torch.randperm(2 * 12 * 13, generator=torch.Generator("cpu").manual_seed(1), device="cpu")
    x = x.to(torch.get_default_device()).double().view(1, 2, 12, 13) / 10
    function = both(op, options)[0]
    x = LAYOUTS[layout](x).requires_grad_()
    with kernel_ran(op):
        assert torch.autograd.gradcheck(function, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, x, fast_mode=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@some_ops
def test_expanded_and_strided_output_gradients(op, options, layout):
    ours, theirs = both(op, options)
    x = LAYOUTS[layout](rand(2, 5, 9, 11)).requires_grad_()
    shape = theirs(x).shape
    for dy in (rand(1).expand(shape), rand(*shape).transpose(2, 3).contiguous().transpose(2, 3)):
        check(ours, theirs, [x], op=op, dys=[dy])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@some_ops
def test_threads(op, options, layout):
    with kernel_ran(op):
        check_threads(both(op, options)[0], [LAYOUTS[layout](rand(3, 17, 50, 61)).requires_grad_()])


@some_ops
def test_compile(op, options):
    ours, theirs = both(op, options)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ours(x * 2) + 1, fullgraph=True, backend="aot_eager")
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](rand(2, 3, 9, 10)).requires_grad_()
        check(compiled, lambda x: theirs(x * 2) + 1, [x], op=op)
    with torch.no_grad():
        assert torch.equal(compiled(x), ours(x * 2) + 1)


def test_compile_indices():
    compiled = torch.compile(lambda x: DF.max_pool2d(x, 2, return_indices=True), fullgraph=True, backend="aot_eager")
    x = rand(2, 3, 8, 8).requires_grad_()
    check(compiled, lambda x: F.max_pool2d(x, 2, return_indices=True), [x], op="max_pool2d")


def test_saves_one_byte_per_output():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = DF.max_pool2d(rand(2, 3, 8, 8).requires_grad_(), 2)
        DF.avg_pool2d(rand(2, 3, 8, 8).requires_grad_(), 2)
    assert [t.nbytes for t in saved] == [y.numel()]


def test_other_dtypes_go_to_pytorch():
    x = rand(2, 3, 8, 8).bfloat16()
    for op, options in SOME:
        ours, theirs = both(op, options)
        assert torch.equal(ours(x), theirs(x))


POOLS = ["max_pool2d", "avg_pool2d"]
ERRORS = [
    (dict(kernel_size=0), "kernel_size"),
    (dict(kernel_size=-1, stride=1), "kernel_size"),
    (dict(kernel_size=(2, 2, 2)), "kernel_size"),
    (dict(kernel_size=[]), "kernel_size"),
    (dict(kernel_size=2**31), "kernel_size"),
    (dict(kernel_size=7), "kernel_size"),
    (dict(kernel_size=2, stride=0), "stride"),
    (dict(kernel_size=2, stride=-1), "stride"),
    (dict(kernel_size=2, stride=(1, 1, 1)), "stride"),
    (dict(kernel_size=3, padding=2), "padding"),
    (dict(kernel_size=3, padding=-1), "padding"),
    (dict(kernel_size=3, padding=(1, 1, 1)), "padding"),
]


@pytest.mark.parametrize(
    "op,options,names",
    [
        *((op, options, names) for op in POOLS for options, names in ERRORS),
        ("max_pool2d", dict(kernel_size=3, dilation=0), "dilation"),
        ("max_pool2d", dict(kernel_size=3, dilation=(1, 1, 1)), "dilation"),
        ("avg_pool2d", dict(kernel_size=2, divisor_override=0), "divisor"),
        ("adaptive_avg_pool2d", dict(output_size=-1), "output_size"),
        ("adaptive_avg_pool2d", dict(output_size=(2, 3, 4)), "output_size"),
        ("adaptive_avg_pool2d", dict(output_size=(3,)), "output_size"),
    ],
)
def test_errors(op, options, names):
    ours, theirs = both(op, options)
    x = rand(2, 3, 6, 6)
    with pytest.raises(RuntimeError):
        theirs(x)
    with pytest.raises(RuntimeError, match=f"{op}: .*{names}"):
        ours(x)


@pytest.mark.parametrize(
    "op,options", [("max_pool2d", {"kernel_size": 2.0}), ("adaptive_avg_pool2d", {"output_size": 2.5})]
)
def test_type_errors(op, options):
    for function in both(op, options):
        with pytest.raises(TypeError):
            function(rand(2, 3, 6, 6))


@pytest.mark.parametrize("shape", [(6,), (6, 6), (1, 2, 3, 6, 6), (2, 0, 6, 6), (2, 3, 0, 6), (0, 6, 6), (3, 6, 0)])
@pytest.mark.parametrize("op,options", [SOME[0], SOME[2], SOME[4]], ids=["max", "avg", "adaptive"])
def test_input_sizes(op, options, shape):
    ours, theirs = both(op, options)
    try:
        expected = theirs(rand(*shape)).shape
    except (RuntimeError, IndexError, ValueError):
        with pytest.raises(RuntimeError, match=f"{op}: .*input"):
            ours(rand(*shape))
    else:
        assert ours(rand(*shape)).shape == expected
