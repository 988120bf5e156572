"""Dropout: the mask's rate, reproducibility and independence of layout and threads; values, gradients, in-place."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from util import DTYPES, LAYOUTS, check_threads, kernel_ran, rand

import dlkernels
import dlkernels.functional as DF

OPS = ["dropout", "dropout2d"]
both_ops = pytest.mark.parametrize("op", OPS)


def seeded(op, x, p=0.4, seed=3, **options):
    torch.manual_seed(seed)
    with kernel_ran(op):
        return getattr(DF, op)(x, p, **options)


def expected_from(kept, x, p):
    return x * kept / (1 - p)


def rng_state():
    """Of the generator that dropout draws from."""
    return torch.cuda.get_rng_state() if torch.get_default_device().type == "cuda" else torch.get_rng_state()


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9, 1e-3, 1 / 3])
@both_ops
def test_rate(op, p):
    """The number dropped is within five standard deviations, of all and of each position in a group of 64."""
    n = 1 << 21
    y = seeded(op, torch.ones(n // 1024, 1024), p)
    dropped = (y == 0).double()
    assert abs(dropped.mean().item() - p) < 5 * (p * (1 - p) / n) ** 0.5
    by_position = dropped.view(-1, 64).mean(0)
    assert (by_position - p).abs().max() < 5 * (p * (1 - p) / (n / 64)) ** 0.5
    # neighbours in any of the distances that a vector or counter has are independent
    for distance in (1, 2, 4, 8, 16, 32, 64):
        a, b = dropped.flatten()[:-distance] - p, dropped.flatten()[distance:] - p
        assert abs((a * b).mean().item()) < 5 * p * (1 - p) / n**0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@both_ops
def test_values_and_gradients(op, layout, dtype):
    p = 0.3
    x = LAYOUTS[layout](rand(3, 7, 9, 11, dtype=dtype)).requires_grad_()
    y = seeded(op, x, p)
    kept = (y != 0).to(dtype)
    if op == "dropout2d":
        kept = kept[:, :, :1, :1]
        assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(y, expected_from(kept, x, p))
    assert y.stride() == F.dropout(x).stride()
    dy = rand(*x.shape, dtype=dtype, seed=1)
    torch.testing.assert_close(torch.autograd.grad(y, x, dy, retain_graph=True)[0], expected_from(kept, dy, p))
    expanded = rand(1, dtype=dtype).expand(x.shape)
    torch.testing.assert_close(torch.autograd.grad(y, x, expanded)[0], expected_from(kept, expanded, p))


@both_ops
def test_lengths(op):
    for n in [*range(1, 140), 1000, 100_003]:
        shape = (1, n) if op == "dropout" else (n, 1, 3)
        x = rand(*shape, seed=n).requires_grad_()
        y = seeded(op, x, 0.5)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert set(dx.unique().tolist()) <= {0.0, 2.0}
        assert torch.equal(y, x * dx)


@pytest.mark.parametrize("shape", [(3, 5, 13, 8), (3, 64, 5, 7), (2, 130, 9, 11)], ids=str)
@both_ops
def test_mask_depends_on_the_logical_index_alone(op, shape):
    x = rand(*shape)
    expected = seeded(op, x)
    for layout in LAYOUTS:
        assert torch.equal(seeded(op, LAYOUTS[layout](x)), expected)
    assert torch.equal(seeded(op, x.double()) != 0, expected != 0)
    if op == "dropout":
        assert torch.equal(seeded(op, x.flatten()), expected.flatten())
        # a shorter tensor has the same mask as far as it goes
        assert torch.equal(seeded(op, x.flatten()[:1003]), expected.flatten()[:1003])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@both_ops
def test_threads(op, layout):
    def function(x):
        return seeded(op, x)

    check_threads(function, [LAYOUTS[layout](rand(4, 33, 50, 61)).requires_grad_()])


@both_ops
def test_manual_seed(op):
    x = torch.ones(8, 64, 2, 2)
    first = seeded(op, x)
    second = getattr(DF, op)(x, 0.4)
    assert not torch.equal(first, second)
    assert torch.equal(seeded(op, x), first)
    assert torch.equal(getattr(DF, op)(x, 0.4), second)
    assert not torch.equal(seeded(op, x, seed=4), first)


@both_ops
def test_draws_only_when_needed(op):
    state = rng_state()
    x = rand(2, 3, 4, 4)
    for p, training in ((0.0, True), (1.0, True), (0.5, False)):
        getattr(DF, op)(x, p, training)
    getattr(DF, op)(rand(0, 3, 4, 4), 0.5)
    torch.ops.dlkernels.dropout(x.to("meta"), torch.empty((), dtype=torch.int64, device="meta"), 0.5, False)
    assert torch.equal(rng_state(), state)


@pytest.mark.parametrize("use_reentrant", [True, False])
@both_ops
def test_checkpoint(op, use_reentrant):
    def block(x):
        return getattr(DF, op)(x.sin(), 0.5).cos()

    x = rand(4, 16, 5, 5).requires_grad_()
    torch.manual_seed(0)
    y = block(x)
    torch.manual_seed(0)
    recomputed = checkpoint(block, x, use_reentrant=use_reentrant)
    assert torch.equal(y, recomputed)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x) + tuple(_grad_by_backward(recomputed, x))))


def _grad_by_backward(y, x):
    y.sum().backward()  # the reentrant checkpoint does not work with autograd.grad
    return [x.grad]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@both_ops
def test_inplace(op, layout, dtype):
    x = LAYOUTS[layout](rand(2, 5, 6, 7, dtype=dtype))
    expected = seeded(op, x)
    leaf = x.clone().requires_grad_()
    z = LAYOUTS[layout](leaf * 1)
    y = seeded(op, z, inplace=True)
    assert y.data_ptr() == z.data_ptr() and torch.equal(z, expected)
    dy = rand(*x.shape, dtype=dtype, seed=1)
    torch.testing.assert_close(torch.autograd.grad(y, leaf, dy)[0], seeded(op, dy))
    with pytest.raises(RuntimeError, match="leaf"):
        getattr(DF, op)(leaf, inplace=True)


def test_inplace_on_a_view():
    base = rand(4, 6).requires_grad_()
    z = base * 1
    torch.manual_seed(0)
    DF.dropout(z[:, ::2], 0.5, inplace=True)
    (dx,) = torch.autograd.grad(z.sum(), base)
    torch.testing.assert_close(z, base * dx)
    assert torch.equal(dx[:, 1::2], torch.ones(4, 3))


@both_ops
def test_eval_and_extreme_probabilities(op):
    x = rand(2, 3, 4, 4).requires_grad_()
    ours, theirs = getattr(DF, op), getattr(F, op)
    assert ours(x, 0.5, training=False).data_ptr() == x.data_ptr()
    for p in (0.0, 1.0):
        y = ours(x, p)
        assert torch.equal(y, theirs(x, p))
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 1 - p))
    tiny = torch.ones(1000, 100)
    assert (ours(tiny, 1e-15) == 0).sum() == 0 and (ours(tiny, 1 - 1e-15) != 0).sum() == 0


@both_ops
def test_nan_and_infinities(op):
    """A dropped NaN or Inf gives NaN: PyTorch multiplies by 0."""
    x = rand(2, 64, 3, 3)
    kept = seeded(op, torch.ones_like(x)) != 0
    for value in (float("nan"), float("inf"), -float("inf")):
        y = seeded(op, torch.full_like(x, value))
        torch.testing.assert_close(y, torch.where(kept, value, float("nan")), equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@both_ops
def test_gradcheck(op, layout):
    x = LAYOUTS[layout](rand(2, 3, 4, 5, dtype=torch.float64)).requires_grad_()

    def function(x):
        return seeded(op, x)

    assert torch.autograd.gradcheck(function, [x])
    assert torch.autograd.gradgradcheck(function, [x])


@both_ops
def test_compile(op):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: getattr(DF, op)(x * 2, 0.5) + getattr(DF, op)(x * 2, 0.5), fullgraph=True, backend="aot_eager"
    )
    x = rand(2, 64, 4, 5).requires_grad_()
    torch.manual_seed(0)
    y = compiled(x)
    torch.manual_seed(0)
    expected = getattr(DF, op)(x * 2, 0.5) + getattr(DF, op)(x * 2, 0.5)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


def test_compile_inplace():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: DF.dropout(x * 2, 0.5, inplace=True), fullgraph=True, backend="aot_eager")
    y = compiled(torch.ones(1000))
    assert set(y.tolist()) == {0.0, 4.0}


def test_saves_one_bit_per_element():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        DF.dropout(rand(64, 64).requires_grad_())
    assert [t.nbytes for t in saved] == [64 * 64 / 8]


@pytest.mark.parametrize("shape", [(4, 6), (3, 4, 5), (2, 3, 4, 5, 6)])
def test_dropout2d_of_other_dimensions(shape):
    """As PyTorch: a warning, and input[n, c] dropped as a whole."""
    with pytest.warns(UserWarning, match="dropout2d"):
        y = seeded("dropout2d", torch.ones(shape))
    channels = y.reshape(*shape[:2], -1)
    assert torch.equal(channels, channels[:, :, :1].expand_as(channels))
    assert 0 < (channels[:, :, 0] == 0).sum() < channels[:, :, 0].numel()


def test_dropout2d_of_one_dimension():
    for function in (DF.dropout2d, F.dropout2d):
        with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="at least 2 dimensions"):
            function(torch.ones(4))


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("training", [True, False])
@both_ops
def test_probability_out_of_range(op, training, p):
    with pytest.raises(ValueError, match=rf"{op}: p.*must be between 0 and 1, got"):
        getattr(DF, op)(rand(2, 3, 4, 4), p, training)


def test_other_dtypes_go_to_pytorch(backend):
    if backend != "cpu":
        pytest.skip("has kernels for bfloat16")
    x = torch.ones(1000, dtype=torch.bfloat16)
    torch.manual_seed(0)
    y = DF.dropout(x)
    torch.manual_seed(0)
    assert torch.equal(y, F.dropout(x))


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2**31 + 5, 2**62 + 12345])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_is_the_same_on_every_backend(backend, layout, seed, channels):
    """The CUDA kernels, on the CPU or on a GPU, keep the same elements as the CPU's for the same seed."""
    if not dlkernels._C.use_simt(False) and backend != "cuda":
        pytest.skip("built without csrc/simt")
    shape, p = (3, 7, 91, 101), 0.37  # of so many elements the upper 16 bits of about three decide nothing
    x = LAYOUTS[layout](rand(*shape).abs() + 1)
    kept = []
    for device in ("cpu", x.device) if backend == "cuda" else ("cpu", "simt"):
        dlkernels._C.use_simt(device == "simt")
        there = x if device == "simt" else x.to(device)
        on = torch.tensor(seed, device=there.device)
        y, _ = torch.ops.dlkernels.dropout(there, on, p, channels)
        kept.append((y != 0).cpu())
    dlkernels._C.use_simt(backend == "simt")
    assert torch.equal(*kept)
    assert 0 < kept[0].float().mean() < 1
