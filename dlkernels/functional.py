"""Functions with the names, parameters, defaults and meaning of their torch.nn.functional namesakes.

Each runs our kernels on dense CPU tensors in float32 or float64 and PyTorch's own op on everything else
(``dlkernels.counts()`` tells which); all are differentiable, twice too.
"""

import warnings

import torch
from torch.nn import _reduction

from dlkernels import _C

# ---- Matrix products

# ---- Convolution

# ---- Pooling

# ---- Normalisation


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel: `torch.nn.functional.batch_norm`
    (Ioffe & Szegedy 2015).

    input: (N, C, ...), contiguous or channels_last. training: mean and variance are those of the batch, and the running
    statistics, if given, are updated in place; otherwise they are used. ValueError for one value per channel."""
    if training and input.size(0) * input.size()[2:].numel() == 1:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size {tuple(input.size())}"
        )
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm: eps must be positive (in evaluation also 0), got {eps}")
    return _C.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def instance_norm(
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    """Batch normalisation of each sample by itself: `torch.nn.functional.instance_norm` (Ulyanov et al. 2016).

    input: (N, C, ...). ValueError for one spatial element with use_input_stats; otherwise the running statistics are
    used. eps must be positive."""
    if use_input_stats and input.size()[2:].numel() == 1:
        raise ValueError(
            f"instance_norm: Expected more than 1 spatial element when training, got input size {tuple(input.size())}"
        )
    return _C.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions: `torch.nn.functional.layer_norm`
    (Ba et al. 2016).

    normalized_shape: the input's last sizes, and those of weight and bias; RuntimeError otherwise."""
    return _C.layer_norm(input, normalized_shape, weight, bias, eps)


def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    """The same over groups of channels of each sample: `torch.nn.functional.group_norm` (Wu & He 2018).

    input: (N, C, ...), contiguous or channels_last. weight, bias: (C). RuntimeError unless num_groups divides C;
    ValueError for one value per group."""
    if input.dim() < 2:
        raise RuntimeError(f"group_norm: input must have at least 2 dimensions, got {input.dim()}")
    if input.size(0) * input.size(1) // num_groups * input.size()[2:].numel() == 1:
        raise ValueError(
            f"group_norm: Expected more than 1 value per channel when training, got input size {tuple(input.size())}"
        )
    return _C.group_norm(input, num_groups, weight, bias, eps)


# ---- Dropout

# ---- Activations


def relu(input, inplace=False):
    """max(0, x), elementwise, on a tensor of any shape: `torch.nn.functional.relu`."""
    return _C.activation("relu", input, 0.0, 0.0, inplace)


def relu6(input, inplace=False):
    """min(max(0, x), 6), elementwise: `torch.nn.functional.relu6`."""
    return _C.activation("hardtanh", input, 0.0, 6.0, inplace)


def leaky_relu(input, negative_slope=0.01, inplace=False):
    """x where x > 0, else negative_slope * x: `torch.nn.functional.leaky_relu`."""
    return _C.activation("leaky_relu", input, negative_slope, 0.0, inplace)


def elu(input, alpha=1.0, inplace=False):
    """x where x > 0, else alpha * (exp(x) - 1): `torch.nn.functional.elu` (Clevert et al. 2015)."""
    return _C.activation("elu", input, alpha, 0.0, inplace)


def hardtanh(input, min_val=-1.0, max_val=1.0, inplace=False):
    """x clipped to [min_val, max_val]: `torch.nn.functional.hardtanh`. ValueError if min_val > max_val."""
    if min_val > max_val:
        raise ValueError(f"hardtanh: min_val must not exceed max_val, got min_val={min_val}, max_val={max_val}")
    return _C.activation("hardtanh", input, min_val, max_val, inplace)


def sigmoid(input):
    """1 / (1 + exp(-x)), elementwise: `torch.nn.functional.sigmoid`."""
    return _C.activation("sigmoid", input, 0.0, 0.0, False)


def tanh(input):
    """Elementwise hyperbolic tangent: `torch.nn.functional.tanh`."""
    return _C.activation("tanh", input, 0.0, 0.0, False)


def gelu(input, approximate="none"):
    """x P(x) with P the standard normal distribution function, or its tanh approximation (Hendrycks & Gimpel 2016):
    `torch.nn.functional.gelu`. RuntimeError unless `approximate` is "none" or "tanh"."""
    names = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in names:
        raise RuntimeError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _C.activation(names[approximate], input, 0.0, 0.0, False)


def silu(input, inplace=False):
    """x * sigmoid(x), elementwise: `torch.nn.functional.silu`."""
    return _C.activation("silu", input, 0.0, 0.0, inplace)


def softplus(input, beta=1, threshold=20):
    """log(1 + exp(beta * x)) / beta, and x where beta * x > threshold: `torch.nn.functional.softplus`."""
    return _C.activation("softplus", input, beta, threshold, False)


# ---- Softmax


def _implicit_softmax_dim(name, ndim, stacklevel):
    """PyTorch's deprecated choice of dimension where none is given, with its warning."""
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if ndim in (0, 1, 3) else 1


def softmax(input, dim=None, _stacklevel=3, dtype=None):
    """exp(x) / sum(exp(x)) over dimension `dim` of a tensor of any shape: `torch.nn.functional.softmax`.

    With `dtype` the input is converted first. IndexError if the input has no dimension `dim`."""
    if dim is None:
        dim = _implicit_softmax_dim("softmax", input.dim(), _stacklevel)
    return _C.softmax(input if dtype is None else input.to(dtype), dim, False)


def log_softmax(input, dim=None, _stacklevel=3, dtype=None):
    """x - log(sum(exp(x))) over dimension `dim`: `torch.nn.functional.log_softmax`. Parameters as `softmax`."""
    if dim is None:
        dim = _implicit_softmax_dim("log_softmax", input.dim(), _stacklevel)
    return _C.softmax(input if dtype is None else input.to(dtype), dim, True)


# ---- Losses


def _reduction_enum(size_average, reduce, reduction):
    """PyTorch's number for a reduction; the deprecated booleans, with its warning, win over the name."""
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return _reduction.get_enum(reduction)


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
):
    """-log softmax(input)[target], averaged by the weights of the target classes:
    `torch.nn.functional.cross_entropy`.

    input: logits (C), (N, C) or (N, C, d1, d2, ...). target: class indices of input's size without C (int64 or uint8;
    IndexError outside [0, C)), or class probabilities of input's size. weight: (C). reduction: "mean", "sum" or
    "none". One fused op, which keeps no probabilities for backward."""
    reduction = _reduction_enum(size_average, reduce, reduction)
    return _C.cross_entropy(input, target, weight, True, reduction, ignore_index, label_smoothing)


def nll_loss(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean"):
    """-input[target] for log-probabilities: `torch.nn.functional.nll_loss`. Shapes as `cross_entropy`, indices only."""
    reduction = _reduction_enum(size_average, reduce, reduction)
    return _C.cross_entropy(input, target, weight, False, reduction, ignore_index, 0.0)


def binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    """Cross-entropy of probabilities `target` and sigmoid(input), elementwise, then reduced:
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    target: of input's size, else ValueError. weight and pos_weight (of the positive class) broadcast to it."""
    reduction = _reduction_enum(size_average, reduce, reduction)
    if target.size() != input.size():
        raise ValueError(
            "binary_cross_entropy_with_logits: target must have the size of input, "
            f"{tuple(input.size())}, got {tuple(target.size())}"
        )
    return _C.binary_cross_entropy_with_logits(input, target, weight, pos_weight, reduction)


def mse_loss(input, target, size_average=None, reduce=None, reduction="mean", weight=None):
    """(input - target)^2, reduced: `torch.nn.functional.mse_loss`.

    Sizes that differ are broadcast, with PyTorch's warning. weight, of input's size (else ValueError): multiplies the
    elements, and "mean" divides by its sum."""
    if target.size() != input.size():
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
            "This will likely lead to incorrect results due to broadcasting. "
            "Please ensure they have the same size.",
            stacklevel=2,
        )
    reduction = _reduction_enum(size_average, reduce, reduction)
    input_size = input.size()
    input, target = torch.broadcast_tensors(input, target)
    if weight is None:
        return _C.mse_loss(input, target, reduction)
    if weight.size() != input_size:
        raise ValueError(
            f"mse_loss: weight must have the size of input, {tuple(input_size)}, got {tuple(weight.size())}"
        )
    none, mean = _reduction.get_enum("none"), _reduction.get_enum("mean")
    losses = _C.mse_loss(input, target, none) * weight
    if reduction == none:
        return losses
    return losses.sum() / weight.sum() if reduction == mean else losses.sum()


# ---- Shape


def flatten(input, start_dim=0, end_dim=-1):
    """`torch.flatten`: a view where strides allow it; there is nothing to compute."""
    return torch.flatten(input, start_dim, end_dim)
