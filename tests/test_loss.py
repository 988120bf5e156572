"""Elementwise losses: binary cross-entropy with logits and mean squared error."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, rand

import dlkernels.functional as DF

REDUCTIONS = ["mean", "sum", "none"]
NAMES = ["binary_cross_entropy_with_logits", "mse_loss"]
BCE = NAMES[0]
INF, NAN = float("inf"), float("nan")


def compare(name, x, target, dys=None, weight=None, pos_weight=None, **options):
    """The weights are passed through check's inputs, so that they follow them to float64."""

    def call(library):
        def function(x, target, weight, pos_weight):
            weights = {"weight": weight, "pos_weight": pos_weight}
            weights = {key: value for key, value in weights.items() if value is not None}
            return getattr(library, name)(x, target, **weights, **options)

        return function

    check(call(DF), call(F), [x, target, weight, pos_weight], op=name, dys=dys)


def targets(*shape, **options):
    return rand(*shape, seed=1, **options).sigmoid()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_layouts(name, layout, reduction, dtype):
    x = 3 * rand(4, 5, 7, 9, dtype=dtype)
    target = targets(4, 5, 7, 9, dtype=dtype)
    for x_layout, target_layout in ((layout, layout), (layout, "contiguous"), ("contiguous", layout)):
        compare(name, LAYOUTS[x_layout](x).requires_grad_(), LAYOUTS[target_layout](target), reduction=reduction)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_lengths(name, reduction):
    for n in [*range(0, 50), 1023, 1024, 1025, 100_003]:
        compare(name, 3 * rand(n, seed=n).requires_grad_(), targets(n), reduction=reduction)
    compare(name, rand().requires_grad_(), targets(), reduction=reduction)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_target_gradient(name, reduction):
    compare(name, rand(30, 7).requires_grad_(), targets(30, 7).requires_grad_(), reduction=reduction)
    compare(name, rand(30, 7), targets(30, 7).requires_grad_(), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [None, (30, 7), (7,), (30, 1), (1,), ()])
@pytest.mark.parametrize("pos_shape", [None, (30, 7), (7,), (1,)])
def test_bce_weights(shape, pos_shape, reduction):
    weight = None if shape is None else rand(*shape, seed=2).exp()
    pos_weight = None if pos_shape is None else rand(*pos_shape, seed=3).exp()
    x = (5 * rand(30, 7)).requires_grad_()
    compare(BCE, x, targets(30, 7), weight=weight, pos_weight=pos_weight, reduction=reduction)


def test_bce_extreme_logits():
    x = torch.tensor([-1e30, -200.0, -100, -90, -20, -1e-6, 0, 1e-6, 20, 90, 100, 200, 1e30]).requires_grad_()
    for target in (0.0, 1.0, 0.3):
        compare(BCE, x, torch.full_like(x, target), reduction="none")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", [0.0, 1.0, 0.5, NAN, INF])
def test_nan_and_inf(name, target):
    x = torch.tensor([NAN, INF, -INF, 1.0] * 9).requires_grad_()
    compare(name, x, torch.full_like(x, target), reduction="none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mse_weight(reduction):
    weight = rand(30, 7, seed=2).exp()
    for w in (weight, weight.clone().requires_grad_()):
        compare("mse_loss", rand(30, 7).requires_grad_(), targets(30, 7), weight=w, reduction=reduction)


@pytest.mark.parametrize("shapes", [((30, 7), (7,)), ((7,), (30, 7)), ((30, 1), (1, 7)), ((30, 7), ())])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_mse_broadcasts(shapes, reduction):
    x, target = rand(*shapes[0]), targets(*shapes[1])
    compare("mse_loss", x.requires_grad_(), target.requires_grad_(), reduction=reduction)


def test_mse_warns_of_broadcast():
    with pytest.warns(UserWarning, match="Using a target size") as warning:
        DF.mse_loss(rand(3, 2), rand(2))
    assert warning[0].filename == __file__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(name, reduction):
    x = rand(3, 5, dtype=torch.float64).requires_grad_()
    target = targets(3, 5, dtype=torch.float64).requires_grad_()
    weight = rand(3, 5, dtype=torch.float64, seed=2).exp()
    function = getattr(DF, name)
    for t, options in itertools.product((target, target.detach()), ({}, {"weight": weight})):
        check_gradients(lambda x, t, options=options: function(x, t, reduction=reduction, **options), [x, t])
    if name == BCE:
        check_gradients(lambda x, t: function(x, t, reduction=reduction, pos_weight=weight[0]), [x, target])


@pytest.mark.parametrize("name", NAMES)
def test_expanded_output_gradient(name):
    compare(name, rand(30, 7).requires_grad_(), targets(30, 7), reduction="none", dys=[rand(30, 1).expand(30, 7)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_threads(name, reduction):
    target = targets(200_003)
    check_threads(lambda x: getattr(DF, name)(x, target, reduction=reduction), [rand(200_003).requires_grad_()])


@pytest.mark.parametrize(
    "name, target, options, exception, message",
    [
        (BCE, rand(3), {}, ValueError, "(?i)target"),
        (BCE, rand(2, 3), {"reduction": "average"}, ValueError, "average"),
        (BCE, rand(2, 3), {"weight": rand(4)}, RuntimeError, "size"),
        (BCE, rand(2, 3), {"pos_weight": rand(4)}, RuntimeError, "size"),
        ("mse_loss", rand(2, 4), {}, RuntimeError, "size"),
        ("mse_loss", rand(2, 3), {"weight": rand(3)}, ValueError, "(?i)weight"),
        ("mse_loss", rand(2, 3), {"reduction": "average"}, ValueError, "average"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_errors(name, target, options, exception, message):
    for library in (F, DF):
        with pytest.raises(exception, match=message):
            getattr(library, name)(rand(2, 3), target, **options)


@pytest.mark.parametrize("name", NAMES)
def test_legacy_reduction(name):
    x, target = rand(20), targets(20)
    with pytest.warns(UserWarning, match="size_average and reduce"), kernel_ran(name):
        ours = getattr(DF, name)(x, target, size_average=False)
    torch.testing.assert_close(ours, getattr(F, name)(x, target, reduction="sum"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_compile(name, reduction):
    def call(library):
        return lambda x, target: getattr(library, name)(x, target, reduction=reduction)

    compiled = torch.compile(call(DF), fullgraph=True, backend="aot_eager")
    check(compiled, call(F), [rand(20, 7).requires_grad_(), targets(20, 7)], op=name)
