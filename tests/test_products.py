"""Matrix products and convolutions where only the CUDA kernels have them: half precision, TF32, every instantiation.

float16 and bfloat16 follow the rule of test_half.py: operands are read as they are, summed in float32, and rounded
once. With TF32 allowed, operands in float32 are first rounded to 10 bits of mantissa: results are then as exact as
float32 sums of products of those. Depthwise convolutions take no part in that.
"""

import contextlib
import ctypes
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
from util import LAYOUTS, _run, check, kernel_ran, rand

import dlkernels
import dlkernels.functional as DF


class PyTorch:
    """Where PyTorch keeps its functions."""

    matmul = torch.matmul
    linear, conv1d, conv2d, conv_transpose2d = F.linear, F.conv1d, F.conv2d, F.conv_transpose2d


def roundings(*terms):
    """What sums of so many terms, in another order than PyTorch's, may be off by: errors grow like the root."""
    return 4 + max(terms) ** 0.5


def check_product(function, inputs, terms, parts=(), **options):
    """Half precision: DF.<function> against PyTorch's, for sums of at most `terms` products, forward and backward."""
    ours, theirs = (functools.partial(getattr(library, function), **options) for library in (DF, PyTorch))
    name = f"{function} {[tuple(x.shape) for x in inputs]} {options}"
    check_half(name, ours, theirs, inputs, function, roundings=roundings(terms), parts=parts)


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
HALF_CASES = {name: case for name, case in CASES.items() if name != "large_kernel"} | {
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


# ---- Sizes at the limits


def test_filter_of_more_positions_than_a_grid_has_rows():
    """Without the gradient to the image, which would take long."""
    inputs = [
        rand(1, 2, 256, 257).contiguous(memory_format=torch.channels_last),
        rand(2, 1, 256, 257, seed=1).requires_grad_(),
    ]
    functions = (functools.partial(library.conv2d, groups=2) for library in (DF, F))
    check(*functions, inputs, op="conv2d", roundings=roundings(256 * 257))


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_filter_without_channels(x_format):
    """A sum of nothing: the bias. (PyTorch gives a result without channels.)"""
    x, bias = torch.zeros(2, 0, 5, 5).contiguous(memory_format=x_format), rand(3)
    y = DF.conv2d(x, torch.zeros(3, 0, 3, 3), bias)
    assert torch.equal(y, bias.view(1, 3, 1, 1).expand(2, 3, 3, 3))


HUGE = 2**31
# Calls of which the checks, ours or PyTorch's, refuse the shapes: nothing of such a size is computed.
TOO_LARGE = {
    "rows": ("matmul", ((HUGE, 2), (3, 4)), {}),
    "columns": ("matmul", ((4, 2), (3, HUGE)), {}),
    "terms": ("matmul", ((4, 2), (HUGE, 2)), {}),
    "batch": ("matmul", ((HUGE, 4, 2), (HUGE, 3, 4)), {}),
    "linear_rows": ("linear", ((2**16, 2**15, 2), (4, 3)), {}),
    "conv1d": ("conv1d", ((1, 1, HUGE), (1, 2, 3)), {}),
    "image": ("conv2d", ((2, 4, 2**14, 2**14), (1, 2, 3, 3)), {}),
    "result": ("conv2d", ((2, 4, 2**12, 2**12), (2**7, 2, 3, 3)), {}),
    "padding": ("conv2d", ((1, 4, 8, 8), (1, 2, 3, 3)), {"padding": 2**29}),
    "filter": ("conv2d", ((1, 4, 8, 8), (2**15, 2**13, 3, 3)), {}),
    "transposed": ("conv_transpose2d", ((2, 4, 2**12, 2**12), (2, 2**7, 3, 3)), {}),
    "transposed_stride": ("conv_transpose2d", ((2, 4, 8, 8), (2, 1, 3, 3)), {"stride": 2**29}),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_32_bits_cannot_number_goes_to_pytorch(case):
    function, shapes, options = TOO_LARGE[case]

    def call(most, **options):
        """On tensors of those sizes in the memory of one element, cut to `most` along each dimension."""
        dlkernels.reset_counts()
        with pytest.raises(RuntimeError):
            getattr(DF, function)(*(torch.zeros(1).expand([min(n, most) for n in s]) for s in shapes), **options)
        return dlkernels.counts()[function]

    assert call(HUGE, **options) == {"kernel": 0, "fallback": 1}
    assert call(8) == {"kernel": 1, "fallback": 0}


# ---- TF32


@contextlib.contextmanager
def tf32(allowed):
    """PyTorch's switches, which are ours too."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.allow_tf32 = value


def to_tf32(x):
    """float32 to 10 bits of mantissa, to nearest, ties away from zero: adding to the bits moves away from it."""
    return ((x.detach().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_rounding_to_tf32():
    x = torch.tensor([1 + 2**-11, -1 - 2**-11, 1 + 2**-12, 1 + 3 * 2**-11, 2 - 2**-23, 1 + 2**-10])
    assert to_tf32(x).tolist() == [1 + 2**-10, -1 - 2**-10, 1, 1 + 2**-9, 2, 1 + 2**-10]
    with tf32(True):
        assert torch.equal(DF.matmul(x[:, None], torch.ones(1, 8)), to_tf32(x)[:, None].expand(-1, 8))


TF32_CASES = {
    "matmul": ("matmul", [(70, 40), (40, 66)], {}),
    "matmul_batches": ("matmul", [(3, 9, 33), (3, 33, 17)], {}),
    "matmul_splits": ("matmul", [(8, 600), (600, 12)], {}),
    "linear": ("linear", [(5, 7, 24), (40, 24), (40,)], {}),
    "conv1d": ("conv1d", [(2, 6, 50), (8, 3, 5), (8,)], {"groups": 2, "padding": 2}),
    "conv2d": ("conv2d", [(2, 12, 9, 10), (20, 12, 3, 3), (20,)], {"padding": 1}),
    "conv2d_strided": ("conv2d", [(2, 5, 9, 10), (6, 5, 3, 2)], {"stride": 2, "dilation": (1, 2)}),
    "conv_transpose2d": ("conv_transpose2d", [(2, 8, 5, 6), (8, 4, 3, 3), (4,)], {"stride": 2}),
}
DEPTHWISE_CASE = ("conv2d", [(2, 8, 9, 10), (16, 1, 3, 3), (16,)], {"padding": 1, "groups": 8})


def errors_with_tf32(case, allowed, x_format):
    """Of the outputs and gradients of a case: the largest errors against float64, on the operands as they are and on
    rounded ones; and what float32 sums cost. Biases are no operands of a product: neither they, nor the gradients that
    their gradients are sums of, are rounded.
    """
    function, shapes, options = case
    inputs = [rand(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    if inputs[0].dim() == 4:
        inputs[0] = inputs[0].detach().contiguous(memory_format=x_format).requires_grad_()
    ours, theirs = (functools.partial(getattr(library, function), **options) for library in (DF, PyTorch))
    dy = rand(*theirs(*inputs).shape, seed=9)
    with tf32(allowed), kernel_ran(function):
        outputs, gradients = _run(ours, inputs, [dy])
    rounded = [to_tf32(x) if x.dim() > 1 else x.detach() for x in inputs]
    plain = _run(theirs, [x.detach().double().requires_grad_() for x in inputs], [dy.double()])
    coarse = _run(theirs, [x.double().requires_grad_() for x in rounded], [to_tf32(dy).double()])
    if len(inputs) == 3:
        coarse[1][2] = plain[1][2]
    for ours, *exact in zip([*outputs, *gradients], plain[0] + plain[1], coarse[0] + coarse[1], strict=True):
        errors = [(ours.double() - x).abs().max().item() for x in exact]
        yield *errors, 64 * torch.finfo(torch.float32).eps * exact[0].abs().max().item(), ours.dim() == 1


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
@pytest.mark.parametrize("case", TF32_CASES)
def test_tf32(case, x_format):
    for plain, _, float32, _ in errors_with_tf32(TF32_CASES[case], False, x_format):
        assert plain <= float32, f"error {plain:.3g} without TF32, float32 costs {float32:.3g}"
    for plain, coarse, float32, is_bias in errors_with_tf32(TF32_CASES[case], True, x_format):
        assert coarse <= float32, f"error {coarse:.3g} with TF32 on rounded operands, float32 costs {float32:.3g}"
        assert is_bias or plain > float32, "TF32 was allowed and not used"


@pytest.mark.parametrize("x_format", FORMATS, ids=["nchw", "nhwc"])
def test_depthwise_has_no_tf32(x_format):
    for plain, _, float32, _ in errors_with_tf32(DEPTHWISE_CASE, True, x_format):
        assert plain <= float32


# ---- Every kernel


def kernels_by_address():
    """The CUDA kernels in the library that was built for csrc/simt: {address in memory: name}."""
    library = dlkernels._C.__file__
    symbols = subprocess.run(["nm", "--demangle", library], capture_output=True, text=True, check=True).stdout
    known = ctypes.cast(ctypes.CDLL(library).PyInit__C, ctypes.c_void_p).value
    found, base = {}, None
    for line in symbols.splitlines():
        address, _, name = line[:16], line[17], line[19:]
        if name == "PyInit__C":
            base = known - int(address, 16)
        elif re.match(r"void dlk::simt::.*(multiply_tile|combine_splits|depthwise_\w+kernel)<", name):
            found[int(address, 16)] = name.split(">(")[0]
    return {base + address: name for address, name in found.items() if "[clone" not in name}


# T of the kernels, TF32 allowed
MATHS = {
    "float32": (torch.float32, "float", False),
    "tf32": (torch.float32, "float", True),
    "float64": (torch.float64, "double", False),
    "float16": (torch.float16, "dlk::f16", False),
    "bfloat16": (torch.bfloat16, "dlk::bf16", False),
}


def is_of(math, name):
    _, element, allowed = MATHS[math]
    tile = re.search(r"TileFor<([\w:]+), (true|false)", name)
    if tile:
        return tile.groups() == (element, str(allowed).lower())
    return (
        not allowed
        and re.search(rf"(combine_splits<dlk::simt::Sink|depthwise_\w+kernel)<{element}\b", name) is not None
    )


# (M, N, K, batch): tiles are large where there are 128 of them, which batches of any size make; with an odd size,
# elements are copied one by one.
PRODUCTS = [(16, 24, 40, 128), (40, 64, 16, 1), (9, 7, 5, 2), (16, 8, 600, 1)]

# x, w, options. 128 groups of 8 channels are 128 large tiles of each pass, of a 3 x 3 filter and of one position.
CONVOLUTIONS = [
    ((1, 1024, 2, 4), (1024, 8, 1, 1), {"groups": 128}),
    ((1, 1024, 3, 3), (1024, 8, 3, 3), {"groups": 128, "padding": 1}),
    ((2, 16, 4, 4), (8, 16, 1, 1), {}),
    ((2, 16, 5, 4), (24, 16, 3, 3), {"padding": 1}),
    ((2, 3, 5, 7), (5, 3, 3, 3), {}),
    ((2, 512, 3, 3), (8, 512, 1, 1), {}),
    ((4, 8, 16, 16), (8, 8, 1, 1), {}),
    ((2, 6, 5, 7), (12, 1, 3, 3), {"groups": 6}),
]


@pytest.mark.parametrize("math", MATHS)
def test_every_kernel(math, backend):
    """All that the library has of one kind of arithmetic is launched, and right."""
    dtype, _, allowed = MATHS[math]
    if backend == "simt":
        dlkernels._C.reset_launched_kernels()

    def check_case(function, inputs, options, terms):
        if dtype in HALVES:
            return check_product(function, inputs, terms, **options)
        ours, theirs = (functools.partial(getattr(library, function), **options) for library in (DF, PyTorch))
        # TF32: at most one unit of its 10 bits for each operand, of which errors of K terms grow by the root
        wider = 2**14 if allowed else 1
        check(ours, theirs, inputs, op=function, roundings=wider * roundings(terms), strides=False)

    with tf32(allowed):
        # A grid of 11 x 12 large tiles, incomplete ones at its edges
        check_case("matmul", [rand(1400, 16, dtype=dtype), rand(16, 1528, dtype=dtype, seed=1)], {}, 16)
        for m, n, k, batch in PRODUCTS:
            for a_transposed, b_transposed in itertools.product([False, True], repeat=2):
                a = rand(batch, m, k, dtype=dtype) if not a_transposed else rand(batch, k, m, dtype=dtype).mT
                b = rand(batch, k, n, dtype=dtype) if not b_transposed else rand(batch, n, k, dtype=dtype).mT
                check_case("matmul", leaves(a, b), {}, k)
        for (x, w, options), x_format in itertools.product(CONVOLUTIONS, FORMATS):
            check_case("conv2d", operands(x, w, 0, dtype, x_format, x_format), options, terms(x, w))
    if backend == "simt" and shutil.which("nm"):
        kernels = {address: name for address, name in kernels_by_address().items() if is_of(math, name)}
        launched = set(dlkernels._C.launched_kernels())
        missed = sorted(name for address, name in kernels.items() if address not in launched)
        assert len(kernels) > 20
        assert not missed, f"{len(missed)} of {len(kernels)} kernels not launched:\n" + "\n".join(missed)
