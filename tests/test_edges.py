"""Where PyTorch's rules are easy to miss: extreme sizes, in-place changes, gradients of other kinds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, check, kernel_ran, rand

import dlkernels
import dlkernels.functional as DF


@pytest.mark.parametrize("in_features, out_features", [(0, 3), (3, 0), (0, 0)])
def test_linear_without_features(in_features, out_features):
    inputs = [rand(2, in_features), rand(out_features, in_features), rand(out_features, seed=1)]
    check(DF.linear, F.linear, [x.requires_grad_() for x in inputs], op="linear")


def test_linear_broadcasts_its_bias_as_pytorch():
    x, w = rand(4, 3), rand(2, 3, seed=1)
    for bias in (rand(1), rand(4, 2)):
        torch.testing.assert_close(DF.linear(x, w, bias), F.linear(x, w, bias))


@pytest.mark.parametrize("stride", [7, 5000, 2**31 - 1])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 3])
def test_strides_past_the_image(stride, x_format, groups):
    x = rand(2, 3, 6, 7).contiguous(memory_format=x_format).requires_grad_()
    w = rand(6 if groups == 1 else 3, 3 // groups, 3, 3, seed=1).requires_grad_()
    check(
        lambda x, w: DF.conv2d(x, w, stride=stride, padding=1, groups=groups),
        lambda x, w: F.conv2d(x, w, stride=min(stride, 9), padding=1, groups=groups),
        [x, w],
        op="conv2d",
        roundings=16,
    )


IMAGES = [
    (1, 1, 1, 2),
    (2, 3, 5, 7),
    (2, 16, 4, 4),
    (1, 17, 8, 9),
    (3, 64, 8, 8),
    (2, 65, 1, 67),
    (1, 200, 13, 11),
    (0, 2, 3, 3),
]


def format_of(x):
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_images_in_the_other_memory_format(shape, dtype):
    x = rand(*shape).to(dtype)
    swapped = x.contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as calls, kernel_ran("softmax"):
        y = DF.softmax(swapped, 1)
    assert not any("copy" in event.name for event in calls.events())  # PyTorch's
    assert torch.equal(y, DF.softmax(x, 1))
    for like, dy in ((x, swapped), (swapped, x)):  # windows of one pixel: the gradient is dy in the format of the input
        leaf = like.detach().requires_grad_()
        (dx,) = torch.autograd.grad(DF.avg_pool2d(leaf, 1), leaf, dy)
        assert torch.equal(dx, dy) and dx.is_contiguous(memory_format=format_of(like))


def test_pointwise_with_extreme_dilation():
    x, w = rand(2, 3, 6, 7).requires_grad_(), rand(4, 3, 1, 1, seed=1).requires_grad_()
    check(lambda x, w: DF.conv2d(x, w, dilation=2**31 - 1), F.conv2d, [x, w], op="conv2d", roundings=16)


def test_pooling_windows_too_large_for_positions_go_to_pytorch():
    x = rand(1, 1, 4, 4).requires_grad_()
    y, indices = DF.max_pool2d(x, 65536, 1, 32768, return_indices=True)
    assert torch.equal(y.flatten(), x.max().expand(y.numel())) and (indices == x.argmax()).all()
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert dx.sum() == y.numel()


@pytest.mark.parametrize("size", [np.int64(2), torch.tensor(2)], ids=["numpy", "tensor"])
def test_other_integers(size):
    x, w = rand(1, 2, 6, 6), rand(3, 2, 3, 3)
    assert torch.equal(DF.conv2d(x, w, stride=size), DF.conv2d(x, w, stride=2))
    assert torch.equal(DF.max_pool2d(x, size), DF.max_pool2d(x, 2))


INPLACE = {
    "relu": lambda x: DF.relu(x, inplace=True),
    "silu": lambda x: DF.silu(x, inplace=True),
    "dropout": lambda x: DF.dropout(x, 0.5, inplace=True),
}


@pytest.mark.parametrize("name", INPLACE)
def test_forbidden_inplace_changes_nothing(name):
    leaf = rand(9).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        INPLACE[name](leaf)
    assert torch.equal(leaf, before)


@pytest.mark.parametrize("name", INPLACE)
def test_inplace_in_inference_mode_is_noticed(name):
    other, saved = rand(9).requires_grad_(), rand(9, seed=1)
    y = other * saved
    with torch.inference_mode():
        INPLACE[name](saved)
        made_there = rand(9)
        INPLACE[name](made_there)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="inference tensor outside InferenceMode"):
        INPLACE[name](made_there)


class Ends(torch.autograd.Function):
    """Passes x on and no gradient back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return None


@pytest.mark.parametrize("op", ["relu", "softmax", "layer_norm", "linear"])
def test_no_gradient_of_the_output(op):
    x, arguments = rand(4, 5).requires_grad_(), {"softmax": (1,), "layer_norm": ((5,),), "linear": (rand(3, 5),)}
    for module in (DF, F):
        y = getattr(module, op)(x, *arguments.get(op, ()))
        assert torch.autograd.grad(Ends.apply(y).sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "hardtanh", "relu6", "gelu", "silu"])
def test_output_may_be_changed_in_place(name):
    """PyTorch saves these ops' inputs: models that change the output train there, so they must here."""
    x = rand(9).requires_grad_()
    grads = []
    for module in (DF, F):
        y = getattr(module, name)(x)
        y.add_(1)
        grads.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_batch_norm_in_eval_mode_then_training():
    """The first backward comes after the buffers changed, but is that of the statistics that its forward used."""
    x = rand(4, 3, 5, 5)
    apart, together = torch.nn.BatchNorm2d(3), dlkernels.nn.BatchNorm2d(3)
    apart.eval()(x).sum().backward()
    apart.train()(x).square().sum().backward()
    (together.eval()(x).sum() + together.train()(x).square().sum()).backward()
    torch.testing.assert_close(together.weight.grad, apart.weight.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(together.bias.grad, apart.bias.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("function", [DF.cross_entropy, DF.binary_cross_entropy_with_logits, DF.mse_loss])
def test_gradients_carry_no_graph(function):
    x, target = rand(4, 5).requires_grad_(), torch.softmax(rand(4, 5, seed=1), 1).requires_grad_()
    gradients = torch.autograd.grad(function(x, target), (x, target))
    assert not any(g.requires_grad for g in gradients)


@pytest.mark.parametrize("name", ["relu", "softmax", "linear", "mse_loss"])
def test_forward_mode_goes_to_pytorch(name):
    options = {"dim": 1} if name == "softmax" else {}
    x = rand(4, 5)
    inputs = [x, rand(4, 5, seed=1)] if name in ("linear", "mse_loss") else [x]
    tangents = []
    for module in (DF, F):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, rand(4, 5, seed=2))
            y = getattr(module, name)(dual, *inputs[1:], **options)
            tangents.append(torch.autograd.forward_ad.unpack_dual(y).tangent)
    torch.testing.assert_close(*tangents)
    with kernel_ran(name):
        getattr(DF, name)(*inputs, **options)


def test_newer_settings_of_tf32_are_read():
    """PyTorch's legacy switches raise when they are read after the newer settings were written."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch has the legacy switches only")
    code = """
import torch, dlkernels.functional as DF
torch.backends.cuda.matmul.fp32_precision = "ieee"
torch.backends.cudnn.conv.fp32_precision = "ieee"
x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
torch.testing.assert_close(DF.conv2d(x, w), torch.conv2d(x, w))
torch.testing.assert_close(DF.matmul(x, x), torch.matmul(x, x))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
