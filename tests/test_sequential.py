"""Sequential: which layers run as one, and that nobody can tell but by the time it takes."""

import copy

import pytest
import torch
from torch import nn
from util import rand

import dlkernels

pytestmark = pytest.mark.usefixtures("one_thread")


class TakesFirst(nn.Module):
    def forward(self, pair):
        return pair[0]


def block():
    """Each kind of neighbour of a batch norm layer: none before, a ReLU, a ReLU6, another one, none after."""
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU6()]
    layers += [nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(True), nn.ReLU(), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers)


def step(model, x):
    """Output, gradients and buffers, and how often our kernels of each op ran."""
    dlkernels.reset_counts()
    x = x.detach().requires_grad_()
    y = model(x)
    gradients = torch.autograd.grad(y, [x, *model.parameters()], rand(*y.shape, seed=1))
    assert not any(count["fallback"] for count in dlkernels.counts().values())
    return [y, *gradients, *model.buffers()], {name: count["kernel"] for name, count in dlkernels.counts().items()}


def compare(model, change, **counts):
    """Against PyTorch's, after the same change of both: equal results, from so many calls of our kernels."""
    ours, theirs = dlkernels.convert(copy.deepcopy(model)), model
    change(ours), change(theirs)
    x = rand(3, 4, 9, 8)
    got, ran = step(ours, x)
    torch.testing.assert_close(got, step(theirs, x)[0], rtol=1e-4, atol=1e-4)
    assert ran == {"conv2d": 1, **counts}


def test_neighbours_run_as_one():
    compare(block(), lambda model: None, batch_norm=5, relu=1)
    compare(block(), lambda model: model.eval(), batch_norm=5, relu=1)


@pytest.mark.parametrize("i", [0, 1], ids=["batch_norm", "relu"])
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_see_their_layer_alone(register, i):
    seen = []

    def hook(module, *values):
        seen.append(values[-1] if torch.is_tensor(values[-1]) else values[-1][0])

    compare(block(), lambda model: getattr(model[i], register)(hook), batch_norm=5, relu=2)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


def test_global_hooks_see_every_layer():
    names = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: names.append(type(module).__name__))
    try:
        compare(block(), lambda model: None, batch_norm=5, relu=3, hardtanh=1)
    finally:
        handle.remove()
    assert names[: len(names) // 2] == names[len(names) // 2 :]


def test_other_bounds_and_overrides_run_alone():
    def widen(model):
        model[4].max_val = 7.0
        model[1].forward = lambda x: x * 2

    compare(block(), widen, batch_norm=5, relu=1, hardtanh=1)


@pytest.mark.parametrize("training", [True, False])
def test_bias_may_change_before_backward(training):
    """PyTorch's layers do not need it there."""
    results = []
    for model in (nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).train(training) for _ in range(2)):
        model = dlkernels.convert(model) if not results else model
        x = rand(3, 4, 5, 6).requires_grad_()
        y = model(x)
        with torch.no_grad():
            model[0].bias.add_(1)
        results.append([y, *torch.autograd.grad(y, [x, *model.parameters()], rand(*y.shape, seed=1))])
    torch.testing.assert_close(*results)


def pooled(activation, **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3), activation, nn.MaxPool2d(3, 2, **options), nn.Conv2d(6, 4, 3))


def rectified_sizes(model, x, name="relu"):
    """Output and gradients of a converted model, and how many elements its activation took."""
    function, sizes = getattr(dlkernels.functional, name), []

    def counted(input, *args, **kwargs):
        sizes.append(input.numel())
        return function(input, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlkernels.functional, name, counted)
        return step(model, x)[0], sizes


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()])
@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"dilation": 2, "ceil_mode": True}])
def test_activation_between_convolution_and_pooling(activation, options, training):
    model = dlkernels.convert(pooled(activation, **options).train(training))
    name = "hardtanh" if isinstance(activation, nn.ReLU6) else "relu"
    apart = copy.deepcopy(model)
    apart[2].register_forward_hook(lambda *_: None)
    x = 3 * rand(2, 4, 14, 17)
    (got, [few]), (expected, [all_of_them]) = rectified_sizes(model, x, name), rectified_sizes(apart, x, name)
    assert 3 * few < all_of_them
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("last", [nn.Flatten(), nn.Conv2d(6, 4, 3), nn.AvgPool2d(2)], ids=lambda m: type(m).__name__)
def test_activation_before_another_layer(last):
    model = dlkernels.convert(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), last))
    x = rand(2, 4, 14, 17)
    _, sizes = rectified_sizes(model, x)
    assert sizes == [2 * 6 * 12 * 15]


@pytest.mark.parametrize("change", ["hook", "indices", "no convolution", "windows of padding"])
def test_activation_stays_before_pooling(change):
    model = dlkernels.convert(pooled(nn.ReLU()))
    if change == "hook":
        model[1].register_forward_hook(lambda *_: None)
    elif change == "indices":
        model[2].return_indices = True
        model[3] = TakesFirst()
    elif change == "windows of padding":
        model[2].padding, model[2].dilation = 1, 4
    else:
        model[0] = nn.Identity()
        model[3] = nn.Identity()
    x = rand(2, 4, 14, 17)
    _, sizes = rectified_sizes(model, x)
    assert sizes == [x.numel() if change == "no convolution" else 2 * 6 * 12 * 15]


def test_no_layer_is_skipped():
    model = dlkernels.convert(nn.Sequential(nn.ReLU()))
    model.add_module("none", None)
    with pytest.raises(TypeError):
        model(rand(2, 3))


def test_reverts():
    model = block()
    assert type(dlkernels.convert(model)) is dlkernels.nn.Sequential
    assert type(dlkernels.revert(model)) is nn.Sequential


@pytest.mark.parametrize("make", [block, lambda: pooled(nn.ReLU())], ids=["batch_norm", "max_pool2d"])
def test_compile(make):
    torch._dynamo.reset()
    eager = dlkernels.convert(make())
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = rand(3, 4, 14, 17).requires_grad_()
    got, expected = compiled(x), eager(x)
    torch.testing.assert_close(got, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, *m.parameters()]) for y, m in ((got, model), (expected, eager))
    ]
    torch.testing.assert_close(*gradients)
