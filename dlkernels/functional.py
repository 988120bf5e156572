"""Functions with the names, parameters, defaults and meaning of their torch.nn.functional namesakes.

Each runs our kernels on dense CPU tensors in float32 or float64 and PyTorch's own op on everything else
(``dlkernels.counts()`` tells which); all are differentiable, twice too.
"""

import math
import operator
import warnings

import torch
from torch.nn import _reduction

from dlkernels import _C

# ---- Matrix products


def linear(input, weight, bias=None):
    """input (..., K) times weight (N, K) transposed, plus bias (N): shape (..., N), as `torch.nn.functional.linear`.

    RuntimeError if the sizes do not agree.
    """
    return _C.linear(input, weight, bias)


def matmul(input, other):
    """The matrix product of vectors, matrices or batches of matrices with broadcasting, as `torch.matmul`.

    RuntimeError if the inner dimensions differ or the batch dimensions do not broadcast.
    """
    return _C.matmul(input, other)


# ---- Convolution


def _tuple(op, name, value, length):
    """`value` as a tuple of `length` integers: an integer stands for all of them."""
    if isinstance(value, int):
        return (value,) * length
    if hasattr(value, "__index__"):  # NumPy's integers, 0-d tensors
        return (operator.index(value),) * length
    value = tuple(value)
    if len(value) == 1:
        return value * length
    if len(value) != length:
        raise RuntimeError(f"{op}: {name} must be an integer or {length} integers, got {value}")
    return value


def _padding_per_side(op, padding, stride, dilation, weight):
    """Padding as (before, after) for each spatial dimension in turn; 'same' puts the odd zero after."""
    n = len(stride)
    if not isinstance(padding, str):
        sides = _tuple(op, "padding", padding, n)
        return sides[:1] * 2 + sides[1:] * 2  # for one or two dimensions
    if padding == "valid":
        return (0,) * (2 * n)
    if padding != "same":
        raise RuntimeError(f"{op}: padding must be 'same', 'valid' or integers, got {padding!r}")
    if any(s != 1 for s in stride):
        raise RuntimeError(f"{op}: padding='same' is not supported for strided convolutions, got stride={stride}")
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    return tuple(side for total in totals for side in (total // 2, total - total // 2))


def conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlation of input (N, C, L) or (C, L) with weight (K, C / groups, S), plus bias (K):
    `torch.nn.functional.conv1d`.

    `padding` is a number of zeros on both sides, 'valid' or 'same'. RuntimeError if sizes do not fit.
    """
    (stride,), (dilation,) = _tuple("conv1d", "stride", stride, 1), _tuple("conv1d", "dilation", dilation, 1)
    padding = _padding_per_side("conv1d", padding, (stride,), (dilation,), weight)
    return _C.conv1d(input, weight, bias, stride, padding, dilation, groups)


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """Cross-correlation of input (N, C, H, W) or (C, H, W) with weight (K, C / groups, R, S), plus bias (K):
    `torch.nn.functional.conv2d`.

    `stride`, `padding` and `dilation` are integers or pairs (height, width); padding also 'valid' or 'same'. The output
    is channels_last if input or weight is. RuntimeError if sizes do not fit.
    """
    stride, dilation = _tuple("conv2d", "stride", stride, 2), _tuple("conv2d", "dilation", dilation, 2)
    padding = _padding_per_side("conv2d", padding, stride, dilation, weight)
    return _C.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """The transposed convolution of input (N, C, H, W) or (C, H, W) with weight (C, K / groups, R, S), plus bias (K):
    the gradient of conv2d to its input, as `torch.nn.functional.conv_transpose2d`.

    RuntimeError if sizes do not fit or output_padding is not below stride or dilation.
    """
    op = "conv_transpose2d"
    return _C.conv_transpose2d(
        input,
        weight,
        bias,
        _tuple(op, "stride", stride, 2),
        _tuple(op, "padding", padding, 2),
        _tuple(op, "output_padding", output_padding, 2),
        groups,
        _tuple(op, "dilation", dilation, 2),
    )


# ---- Pooling


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """The maximum of each window of a (N, C, H, W) or (C, H, W) tensor: `torch.nn.functional.max_pool2d`.

    With `return_indices` also the int64 index of each maximum in its H x W plane (-1 for a window wholly in the
    padding, which a dilation makes possible).
    """
    function = _C.max_pool2d_with_indices if return_indices else _C.max_pool2d
    return function(input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """The mean of each window of a (N, C, H, W) or (C, H, W) tensor: `torch.nn.functional.avg_pool2d`."""
    return _C.avg_pool2d(input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def adaptive_avg_pool2d(input, output_size):
    """Means over windows that divide the input as evenly as can be into an output of `output_size` (None: as the
    input): `torch.nn.functional.adaptive_avg_pool2d`."""
    if isinstance(output_size, (tuple, list)) and len(output_size) == 2:
        output_size = [input.shape[i - 2] if size is None else size for i, size in enumerate(output_size)]
    return _C.adaptive_avg_pool2d(input, output_size)


# ---- Normalisation


def batch_norm(input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel: `torch.nn.functional.batch_norm`
    (Ioffe & Szegedy 2015).

    input: (N, C, ...), contiguous or channels_last. training: mean and variance are those of the batch, and the running
    statistics, if given, are updated in place; otherwise they are used. ValueError for one value per channel."""
    return _batch_norm_then(None, input, running_mean, running_var, weight, bias, training, momentum, eps)


_BOUNDS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}


def _batch_norm_then(activation, input, running_mean, running_var, weight, bias, training, momentum, eps):
    """`batch_norm` and an activation, None, "relu" or "relu6", in one pass over memory: what `dlkernels.nn.Sequential`
    runs."""
    if training and input.size(0) * input.size()[2:].numel() == 1:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size {tuple(input.size())}"
        )
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch_norm: eps must be positive (in evaluation also 0), got {eps}")
    low, high = _BOUNDS[activation]
    return _C.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps, low, high)


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


def dropout(input, p=0.5, training=True, inplace=False):
    """Each element zeroed with probability p, the others divided by 1 - p: `torch.nn.functional.dropout`.

    `torch.manual_seed` governs which; for one seed they are the same whatever the memory format and the number of
    threads, but not those that PyTorch's own generator gives. ValueError unless 0 <= p <= 1.
    """
    return _C.dropout(input, p, training, inplace, False)


def dropout2d(input, p=0.5, training=True, inplace=False):
    """Each channel input[n, c] zeroed with probability p, the others divided by 1 - p:
    `torch.nn.functional.dropout2d`, which warns of inputs that are not 4-D and takes 3-D ones as (N, C, L)."""
    if input.dim() != 4:
        warnings.warn(
            f"dropout2d: expects a 4-D input (N, C, H, W), got {input.dim()}-D, which is taken as (N, C, ...)",
            stacklevel=2,
        )
    return _C.dropout(input, p, training, inplace, True)


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
    if approximate not in ("none", "tanh"):
        raise RuntimeError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return _C.activation("gelu" if approximate == "none" else "gelu_tanh", input, 0.0, 0.0, False)


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
