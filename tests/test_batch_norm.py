"""Batch and instance normalisation: statistics, running statistics, layouts, gradients, errors."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, on_cpu, rand

import dlkernels.functional as DF

NAMES = ["batch_norm", "instance_norm"]


def parameters(C, dtype=torch.float32):  # noqa: N803
    """running_mean, running_var, weight, bias"""
    mean, var, weight, bias = (rand(C, dtype=dtype, seed=i) for i in range(1, 5))
    return mean, var.exp(), weight.requires_grad_(), bias.requires_grad_()


def batch_norm_then(activation):
    """Ours, which applies the activation at once, and PyTorch's two functions; both as batch_norm alone is called."""
    return functools.partial(DF._batch_norm_then, activation), lambda *args: getattr(F, activation)(F.batch_norm(*args))


def compare(name, x, affine=True, running=True, training=True, dys=None, activation=None, momentum=0.1, eps=1e-5):
    """Output, gradients and, as further outputs, the running statistics after the call."""
    ours, theirs = (getattr(library, name) for library in (DF, F))
    if activation:
        ours, theirs = batch_norm_then(activation)
    mean, var, weight, bias = parameters(x.size(1), x.dtype)
    inputs = [
        x,
        mean if running else None,
        var if running else None,
        weight if affine else None,
        bias if affine else None,
    ]

    def call(function):
        def normalise(x, mean, var, weight, bias):
            mean, var = (t.clone() if running else None for t in (mean, var))
            y = function(x, mean, var, weight, bias, training, momentum, eps)
            return (y, mean, var) if running else y

        return normalise

    check(call(ours), call(theirs), inputs, op=name, dys=dys, roundings=4 if x.dtype == torch.float32 else 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, training, layout, dtype):
    x = LAYOUTS[layout](rand(4, 19, 7, 9, dtype=dtype)).requires_grad_()
    for affine in (True, False):
        compare(name, x, affine=affine, training=training)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape", [(40, 7), (9, 7, 6), (5, 7, 4, 3), (3, 7, 4, 3, 5), (2, 1, 3, 3), (1, 5, 3, 3), (3, 4, 1, 1)]
)
def test_ranks(name, shape):
    if name == "instance_norm" and shape[2:] in ((), (1, 1)):
        return
    for training, running in ((True, True), (True, False), (False, True)):
        compare(name, rand(*shape).requires_grad_(), training=training, running=running)


def test_channels_last_3d():
    x = rand(2, 17, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    for training in (True, False):
        compare("batch_norm", x, training=training)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_lengths(layout):
    for n in [*range(2, 36), 64, 65]:
        compare("batch_norm", LAYOUTS[layout](rand(2, 5, 1, n, seed=n)).requires_grad_())
        compare("batch_norm", LAYOUTS[layout](rand(9, n, 1, 2, seed=n)).requires_grad_())
    for shape in ((3, 2, 47, 91), (37, 5, 7, 7), (2500, 2, 1, 1), (700, 33, 2, 2)):  # several blocks
        compare("batch_norm", LAYOUTS[layout](rand(*shape)).requires_grad_())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean", [1000, -1e4])
def test_variance_far_from_zero(layout, mean):
    compare("batch_norm", LAYOUTS[layout](rand(8, 5, 30, 40) + mean).requires_grad_())


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("first, shape", [(2, (8, 5, 30, 40)), (30, (2, 5, 60, 70)), (1, (40, 5, 3, 5))])
def test_variance_of_an_unlike_beginning(layout, first, shape):
    """Sums are about a number that is found among the first."""
    x = rand(*shape)
    x[0, :, :first] += 1000
    compare("batch_norm", LAYOUTS[layout](x).requires_grad_())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 1.0}, {"momentum": 0.3, "eps": 0.1}])
def test_options(name, options):
    compare(name, rand(4, 5, 6, 7).requires_grad_(), **options)


def test_weight_or_bias_alone():
    x = rand(4, 5, 6, 7).requires_grad_()
    _, _, weight, bias = parameters(5)
    for w, b in ((weight, None), (None, bias)):
        check(
            lambda x, w, b: DF.batch_norm(x, None, None, w, b, True),
            on_cpu(lambda x, w, b: F.batch_norm(x, None, None, w, b, True)),  # CUDA: no backward without bias
            [x, w, b],
            op="batch_norm",
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 3, 3), (0, 5), (2, 5, 0, 3)])
def test_empty(shape, training):
    compare("batch_norm", rand(*shape).requires_grad_(), training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_inf(layout, training):
    x = rand(2, 40, 3, 5)
    for i, special in enumerate([float("nan"), float("inf"), -float("inf")]):
        x[1, 7 * i, 2, 1] = special
    compare("batch_norm", LAYOUTS[layout](x).requires_grad_(), training=training)


@pytest.mark.parametrize("first", [0, 150])
@pytest.mark.parametrize("others", [[float("inf")], [float("inf"), -float("inf")], [float("inf"), float("nan")]])
@pytest.mark.parametrize("shape", [(300, 5), (300, 5, 16)], ids=["rows", "planes"])
def test_statistics_of_special_values_in_many_rows(first, others, shape):
    """Among the first of a block of rows or planes, whose mean the others are compared with, or later."""
    x = rand(*shape)
    x[first, 2], x[first + 100, 2] = others[0], others[-1]
    ours, theirs = [(torch.zeros(5), torch.ones(5)) for _ in range(2)]
    with kernel_ran("batch_norm"):
        DF.batch_norm(x, *ours, training=True, momentum=1.0)
    F.batch_norm(x, *theirs, training=True, momentum=1.0)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(layout, training, affine):
    mean, var, *weights = parameters(3, torch.float64)
    x = LAYOUTS[layout](rand(3, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    weights = weights if affine else []
    running = (None, None) if training else (mean, var)
    check_gradients(lambda x, *w: DF.batch_norm(x, *running, *w, training=training), [x, *weights])
    if layout == "contiguous":
        check_gradients(lambda x, *w: DF.instance_norm(x, *running, *w, use_input_stats=training), [x, *weights])


def test_create_graph_leaves_running_statistics():
    mean, var, weight, bias = parameters(5)
    x = rand(4, 5, 6, 7).requires_grad_()
    y = DF.batch_norm(x, mean, var, weight, bias, True)
    after = mean.clone(), var.clone()
    torch.autograd.grad((y * rand(4, 5, 6, 7)).sum(), x, create_graph=True)
    assert torch.equal(mean, after[0]) and torch.equal(var, after[1])


def test_update_of_running_statistics_is_noticed():
    x, other = rand(4, 5, 6, 7), rand(5).requires_grad_()
    mean, var, _, _ = parameters(5)
    y = other * mean
    DF.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with torch.inference_mode():
        made_there = mean.clone()
        DF.batch_norm(x, made_there, var, training=True)
    before = made_there.tolist()
    with pytest.raises(RuntimeError, match="inference tensor outside InferenceMode"):
        DF.batch_norm(x, made_there, var, training=True)
    assert made_there.tolist() == before


@pytest.mark.parametrize("record", ["make_fx", "trace"])
def test_update_of_running_statistics_is_recorded(record):
    def step(x, mean, var):
        return DF.batch_norm(x, mean, var, training=True)

    def statistics():
        return parameters(5)[:2]

    x = rand(4, 5, 6, 7)
    inputs = (x, *statistics())
    recorded = torch.jit.trace(step, inputs) if record == "trace" else make_fx(step)(*inputs)
    expected, got = statistics(), statistics()
    step(x, *expected)
    recorded(x, *got)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_expanded_output_gradient(layout, training):
    x = LAYOUTS[layout](rand(4, 5, 6, 7)).requires_grad_()
    compare("batch_norm", x, training=training, dys=[rand(4, 5, 1, 1).expand(4, 5, 6, 7)])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(8, 9, 50, 60), (3000, 17, 1, 2)])
def test_threads(layout, shape):
    _, _, weight, bias = parameters(shape[1])
    x = LAYOUTS[layout](rand(*shape)).requires_grad_()
    check_threads(lambda x, w, b: DF.batch_norm(x, None, None, w, b, True), [x, weight, bias])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "shape, overrides, exception, message",
    [
        ((1, 5, 1, 1), {}, ValueError, "Expected more than 1"),
        ((4, 5, 6), {0: rand(4)}, RuntimeError, "running_mean"),
        ((4, 5, 6), {1: rand(4)}, RuntimeError, "running_var"),
        ((4, 5, 6), {2: rand(4)}, RuntimeError, "weight"),
        ((4, 5, 6), {3: rand(4)}, RuntimeError, "bias"),
        ((4, 5, 6), {1: None}, ValueError, "running_mean"),
        ((4, 5, 6), {0: None, 1: None, 4: False}, RuntimeError, "running_mean"),
    ],
)
def test_errors(name, shape, overrides, exception, message):
    arguments = [*parameters(5), True]
    for i, value in overrides.items():
        arguments[i] = value
    with pytest.raises(exception):
        getattr(F, name)(rand(*shape), *arguments)
    with pytest.raises(exception, match=message):
        getattr(DF, name)(rand(*shape), *arguments)


def test_eps_must_be_positive():
    for library, (training, eps) in itertools.product((F, DF), ((True, 0.0), (False, -1.0))):
        with pytest.raises(ValueError, match="eps"):
            library.batch_norm(rand(4, 5), rand(5), rand(5).exp(), training=training, eps=eps)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_compile(name, training):
    mean, var, weight, bias = parameters(5)
    x = rand(4, 5, 6, 7).requires_grad_()
    ours, theirs = [mean.clone(), var.clone()], [mean.clone(), var.clone()]
    compiled = torch.compile(
        lambda x, w, b: getattr(DF, name)(x, *ours, w, b, training), fullgraph=True, backend="aot_eager"
    )
    y, expected = compiled(x, weight, bias), getattr(F, name)(x, *theirs, weight, bias, training)
    torch.testing.assert_close([y, *ours], [expected, *theirs])
    dy = rand(4, 5, 6, 7, seed=9)
    gradients = torch.autograd.grad(y, [x, weight, bias], dy)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, [x, weight, bias], dy))


# ---- With an activation


ACTIVATIONS = pytest.mark.parametrize("activation", ["relu", "relu6"])


@ACTIVATIONS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activation_layouts(training, layout, dtype, activation):
    x = LAYOUTS[layout](4 * rand(4, 19, 7, 9, dtype=dtype)).requires_grad_()
    for affine in (True, False):
        compare("batch_norm", x, affine=affine, training=training, activation=activation)


@ACTIVATIONS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activation_lengths(layout, activation):
    for n in [*range(2, 20), 31, 33, 64, 65]:
        compare("batch_norm", LAYOUTS[layout](rand(2, 5, 1, n, seed=n)).requires_grad_(), activation=activation)
        compare("batch_norm", LAYOUTS[layout](rand(9, n, 1, 2, seed=n)).requires_grad_(), activation=activation)
    for shape in ((3, 2, 47, 91), (37, 5, 7, 7), (2500, 2, 1, 1), (700, 33, 2, 2)):  # several blocks
        compare("batch_norm", LAYOUTS[layout](rand(*shape)).requires_grad_(), activation=activation)
    compare("batch_norm", LAYOUTS[layout](rand(0, 5, 3, 3)).requires_grad_(), activation=activation)


@ACTIVATIONS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activation_at_its_bounds_and_beyond(layout, activation):
    """Where all of a channel is 0, 6, NaN or Inf, by its weight and bias: the slope there is PyTorch's."""
    x = LAYOUTS[layout](rand(3, 8, 4, 5)).requires_grad_()
    mean, var, weight, bias = (t.detach() for t in parameters(8))
    weight[:4] = 0
    nan = float("nan") if activation == "relu" else 1  # PyTorch's hardtanh has two answers, which the length decides
    bias[:6] = torch.tensor([0, 6, -1, 7, nan, float("inf")])
    ours, theirs = (
        [y, *torch.autograd.grad(y, [x, weight, bias], torch.ones_like(y))]
        for f in batch_norm_then(activation)
        for y in [f(x, mean, var, weight.requires_grad_(), bias.requires_grad_(), False, 0.1, 1e-5)]
    )
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@ACTIVATIONS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_activation_gradcheck(layout, training, affine, activation):
    mean, var, *weights = parameters(3, torch.float64)
    x = LAYOUTS[layout](3 * rand(3, 3, 2, 2, dtype=torch.float64)).requires_grad_()
    running = (None, None) if training else (mean, var)
    function = batch_norm_then(activation)[0]
    weights = weights if affine else [None, None]
    inputs = [x, *(w for w in weights if affine)]
    check_gradients(lambda x, *w: function(x, *running, *(w or weights), training, 0.1, 1e-5), inputs)


@ACTIVATIONS
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_activation_threads(layout, activation):
    _, _, weight, bias = parameters(9)
    function = batch_norm_then(activation)[0]
    x = LAYOUTS[layout](rand(8, 9, 50, 60)).requires_grad_()
    check_threads(lambda x, w, b: function(x, None, None, w, b, True, 0.1, 1e-5), [x, weight, bias])


@pytest.mark.parametrize("activation, saved_sizes", [(None, [5, 5]), ("relu", [5, 5, 5])])
def test_saves_only_input_and_statistics(activation, saved_sizes):
    """And with an activation the bias."""
    saved = []
    x = rand(4, 5, 6, 7).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        DF._batch_norm_then(activation, x, None, None, None, rand(5), True, 0.1, 1e-5)
    assert sorted(t.numel() for t in saved) == [*saved_sizes, x.numel()]
