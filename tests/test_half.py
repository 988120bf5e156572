"""float16 and bfloat16, for which only the CUDA kernels exist: every function but matrix products and convolutions
(test_products.py).

The rule: kernels read half precision, compute in float32 and round once. So an element may be off by the rounding of
the exact result (half a unit in its last place), and by what float32 costs: twice the largest error of the float32 op
of PyTorch on the same inputs, or a few roundings of the largest value, as elsewhere. Functions whose gradient is
computed from their output keep that output rounded, as PyTorch does; their exact gradient is that of the kept output.
instance_norm repeats its parameters for each sample, as PyTorch does: their results are made of N that are rounded.
"""

import functools
from types import MappingProxyType

import pytest
import torch
import torch.nn.functional as F
from cases import FUNCTIONS, functions_of, op_of
from util import LAYOUTS, _run, kernel_ran, rand

import dlkernels.functional as DF

HALVES = [torch.float16, torch.bfloat16]
ELSEWHERE = ("matmul", "linear", "conv", "flatten")  # products: test_products.py; a view has no kernel
CASES = [case for case in FUNCTIONS if not case.startswith(ELSEWHERE)]


@pytest.fixture(autouse=True)
def needs_kernels(backend):
    if backend == "cpu":
        pytest.skip("the CPU has no kernels for half precision")


# The gradient from the output y, where that is what is kept.
FROM_OUTPUT = {
    "sigmoid": lambda y, dy: dy * y * (1 - y),
    "tanh": lambda y, dy: dy * (1 - y * y),
    "softmax": lambda y, dy, dim: y * (dy - (dy * y).sum(dim, keepdim=True)),
    "log_softmax": lambda y, dy, dim: dy - y.exp() * dy.sum(dim, keepdim=True),
}


def to(dtype, inputs):
    """The same values as leaves of another dtype."""
    return [
        x.detach().to(dtype).contiguous().requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]


def assert_rounded_once(name, ours, float32, exact, rounded=0, roundings=4):
    """`rounded`: how many rounded numbers the result is made of; `roundings`: in float32, beside PyTorch's error."""
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)} in place of {tuple(exact.shape)}"
    if not ours.is_floating_point():
        assert torch.equal(ours, exact), f"{name}: values differ"
        return
    if ours.numel() == 0:
        return
    info, single = torch.finfo(ours.dtype), torch.finfo(torch.float32)
    assert ours.isfinite().all() and exact.abs().max() < info.max, f"{name}: not finite"
    scale = exact.abs().max().item()
    float32_error = 2 * (float32.double() - exact).abs().max().item() + roundings * single.eps * scale
    rounding = 0.5 * info.eps * (exact.abs() + rounded * scale) + info.smallest_normal * info.eps
    excess = ((ours.double() - exact).abs() - rounding).max().item()
    assert excess <= float32_error, f"{name}: {excess:.3g} more than a rounding, float32 costs {float32_error:.3g}"


def check_half(name, ours, theirs, inputs, op, options=MappingProxyType({}), roundings=4, parts=()):
    """ours(*inputs), in half precision, against theirs on the same values in float32 and float64.

    `parts`: per input, how many rounded numbers its gradient is made of, where it is more than one.
    """
    with kernel_ran(op):
        outputs, gradients = _run(ours, inputs, None)
    dys = [rand(*y.shape, dtype=y.dtype, seed=100 + i) for i, y in enumerate(y for y in outputs if y.requires_grad)]
    float32, float32_gradients = _run(theirs, to(torch.float32, inputs), dys)
    exact, exact_gradients = _run(theirs, to(torch.float64, inputs), dys)
    samples = inputs[0].size(0) if op == "instance_norm" else 0
    parts = (0, samples, samples) if samples else parts
    for i, values in enumerate(zip(outputs, float32, exact, strict=True)):
        assert values[0].dtype in (inputs[0].dtype, torch.int64), f"{name} output {i}: {values[0].dtype}"
        assert_rounded_once(f"{name} output {i}", *values, samples if i > 0 else 0, roundings)
    if op in FROM_OUTPUT:
        formula = functools.partial(FROM_OUTPUT[op], **options)
        kept = outputs[0].detach()
        float32_gradients = [formula(kept.float(), dys[0].float())]
        exact_gradients = [formula(kept.double(), dys[0].double())]
    for i, values in enumerate(zip(gradients, float32_gradients, exact_gradients, strict=True)):
        assert values[0].dtype == inputs[0].dtype
        assert_rounded_once(f"{name} gradient {i}", *values, parts[i] if i < len(parts) else 0, roundings)


def check_case(case, inputs, dtype):
    ours, theirs = functions_of(case)
    if op_of(case).startswith("dropout"):
        theirs = ours  # draws the same elements in every dtype
    bind = FUNCTIONS[case].bind
    check_half(case, bind(ours), bind(theirs), inputs, op_of(case), FUNCTIONS[case].options)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", CASES)
def test_functions(case, dtype):
    check_case(case, FUNCTIONS[case].inputs(3, dtype), dtype)


IMAGES = [case for case in CASES if FUNCTIONS[case].shapes(1)[0] == (1, 8, 12, 13)]


@pytest.mark.parametrize("layout", ["offset", "strided", "channels_last"])
@pytest.mark.parametrize("case", IMAGES)
def test_layouts(case, layout):
    """8 channels make whole vectors of them; of the cropped images, 5 channels and rows of 11 do not."""
    inputs = FUNCTIONS[case].inputs(3, torch.float16)
    cropped = [[inputs[0][:, :5, :11, :11]]] if len(inputs) == 1 else []
    for images in (inputs, *cropped):
        laid = [LAYOUTS[layout](x.detach()).requires_grad_(x.requires_grad) if is_image(x) else x for x in images]
        check_case(case, laid, torch.float16)


def is_image(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim() == 4


LENGTHS = [1, 2, 7, 8, 9, 15, 16, 17, 255, 256, 257, 2049]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "name", ["gelu", "softplus", "tanh", "dropout", "mse_loss", "binary_cross_entropy_with_logits"]
)
def test_lengths(name, dtype):
    for n in LENGTHS:
        x = rand(n, dtype=dtype).requires_grad_()
        inputs = [x, torch.sigmoid(rand(n, dtype=dtype, seed=1))] if "loss" in name or "binary" in name else [x]
        check_case(name, inputs, dtype)


# Rows that 1 to 32 lanes share, that a block does, and that a larger block does.
ROWS = [(5, n) for n in [1, 2, 7, 8, 9, 16, 33, 64, 200, 257, 2047, 2056, 3001]] + [(2, 17000), (300, 3)]


ROW_CALLS = {
    "softmax": lambda library, x, target: library.softmax(x, 1),
    "log_softmax": lambda library, x, target: library.log_softmax(x, 1),
    "layer_norm": lambda library, x, target: library.layer_norm(x, x.shape[1:]),
    "cross_entropy": lambda library, x, target: library.cross_entropy(x, target, label_smoothing=0.1),
    "nll_loss": lambda library, x, target: library.nll_loss(x, target, reduction="sum"),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ROW_CALLS)
def test_rows(name, dtype):
    call = ROW_CALLS[name]
    for rows, n in ROWS:
        inputs = [rand(rows, n, dtype=dtype).requires_grad_(), torch.arange(rows) * 7 % n]
        ours, theirs = functools.partial(call, DF), functools.partial(call, F)
        check_half(f"{name} {rows} x {n}", ours, theirs, inputs, name, {"dim": 1})


def normalise_batch(library, x, weight=None, bias=None):
    return library.batch_norm(x, None, None, weight, bias, training=True)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(300, 8), (70, 13), (2, 3, 1), (3, 5, 7), (2, 3, 8200), (4, 600, 8), (1000, 1, 2)])
def test_batch_norm_shapes(shape, dtype):
    inputs = [rand(*s, dtype=dtype, seed=i).requires_grad_() for i, s in enumerate([shape, shape[1:2], shape[1:2]])]
    ours, theirs = functools.partial(normalise_batch, DF), functools.partial(normalise_batch, F)
    check_half(f"batch_norm {shape}", ours, theirs, inputs, "batch_norm")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["batch_norm", "layer_norm"])
def test_mean_far_from_zero(name, dtype):
    x = (rand(64, 40, dtype=torch.float64) + 200).to(dtype).requires_grad_()
    call = normalise_batch if name == "batch_norm" else lambda library, x: library.layer_norm(x, (40,))
    check_half(name, functools.partial(call, DF), functools.partial(call, F), [x], name)


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_beyond_the_range(dtype):
    """Losses and sums that half precision cannot hold, although the results are small."""
    x = torch.full((40, 50), 200.0, dtype=dtype).requires_grad_()  # squares: 4e4, their sum: 8e7
    with kernel_ran("mse_loss"):
        y = DF.mse_loss(x, torch.zeros_like(x))
    assert y.item() == 40000 if dtype == torch.float16 else abs(y.item() - 40000) <= 128
    x = torch.full((64, 2048), 60.0, dtype=dtype)
    with kernel_ran("avg_pool2d"):
        y = DF.avg_pool2d(x.reshape(1, 1, 64, 2048), (64, 2048))
    assert torch.equal(y.flatten(), x[0, :1])
