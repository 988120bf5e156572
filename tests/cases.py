"""Every function and layer of the library in every form that its documentation names: what the tests of names, layers
and threads run over."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from util import rand

import dlkernels.functional as DF


def _leaves(shapes, dtype):
    """A random tensor that requires grad for each shape."""
    return [rand(*shape, dtype=dtype, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


def classes_for(x):
    """A class index for each sample and position of logits (N, C, ...)."""
    shape = x.shape[:1] + x.shape[2:]
    return torch.arange(shape.numel()).reshape(shape) * 7 % x.shape[1]


def probabilities_for(x):
    return torch.sigmoid(2 * x.detach() - 0.5)


def _running_statistics(x, *affine):
    mean, var = rand(2, x.shape[1], dtype=x.dtype, seed=9)
    return mean, var.square() + 0.5


def _normalise(function, x, *rest, **options):
    """batch_norm or instance_norm of fresh copies of the running statistics, which are results too."""
    *affine, mean, var = rest
    mean, var = mean.clone(), var.clone()
    return function(x, mean, var, *affine, **options), mean, var


def _seeded(function, x, **options):
    torch.manual_seed(5)
    return function(x, **options)


def _plain(function, *inputs, **options):
    return function(*inputs, **options)


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to call a function: through `call`, with random leaves of the shapes that `shapes` gives for N samples,
    and after them what `data` makes of those leaves: targets, buffers, constants."""

    shapes: Callable
    call: Callable
    data: Callable
    options: dict

    def inputs(self, n, dtype):
        leaves = _leaves(self.shapes(n), dtype)
        data = self.data(*leaves)
        return [*leaves, *(data if isinstance(data, tuple) else (data,))]

    def bind(self, function):
        """A function of the inputs alone."""
        return lambda *inputs: self.call(function, *inputs, **self.options)


def _case(shapes, call=_plain, data=lambda *leaves: (), **options):
    return Case(shapes, call, data, options)


def _normalisation(shapes, **options):
    return _case(shapes, _normalise, _running_statistics, **options)


def _images(n):
    return [(n, 8, 12, 13)]


def _images_and_channels(n):
    return [(n, 8, 12, 13), (8,), (8,)]


def _two_images(n):
    return 2 * _images(n)


def _logits(n):
    return [(20 * n, 60)]


def _classes_and_weight(x):
    return classes_for(x), rand(x.shape[1], dtype=x.dtype).abs()


# "function" or "function form": a function may have several forms.
FUNCTIONS = {
    "matmul": _case(lambda n: [(16 * n, 48), (48, 40)]),
    "matmul vectors": _case(lambda n: [(400 * n,), (400 * n,)]),
    "matmul matrix-vector": _case(lambda n: [(10 * n, 400), (400,)]),
    "matmul vector-matrix": _case(lambda n: [(10 * n,), (10 * n, 400)]),
    "matmul batches": _case(lambda n: [(n, 24, 32), (n, 32, 20)]),
    "matmul broadcasting": _case(lambda n: [(n, 1, 24, 32), (3, 32, 20)]),
    "linear": _case(lambda n: [(n, 3, 48), (40, 48), (40,)]),
    "linear without bias": _case(lambda n: [(8 * n, 48), (40, 48)]),
    "conv1d": _case(lambda n: [(n, 6, 50), (8, 6, 3), (8,)]),
    "conv1d same": _case(lambda n: [(n, 6, 50), (8, 3, 4)], padding="same", groups=2, dilation=2),
    "conv2d": _case(lambda n: [(n, 6, 12, 13), (8, 6, 3, 3), (8,)]),
    "conv2d unbatched": _case(lambda n: [(6, 12, 10 * n), (8, 6, 3, 3), (8,)]),
    "conv2d options": _case(
        lambda n: [(n, 6, 12, 13), (8, 3, 3, 2)], stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2
    ),
    "conv2d same": _case(lambda n: [(n, 6, 12, 13), (8, 6, 4, 3), (8,)], padding="same"),
    "conv2d valid": _case(lambda n: [(n, 6, 12, 13), (8, 6, 1, 1), (8,)], padding="valid"),
    "conv2d depthwise": _case(lambda n: [(n, 8, 12, 13), (8, 1, 3, 3), (8,)], padding=1, groups=8),
    "conv_transpose2d": _case(lambda n: [(n, 6, 9, 8), (6, 8, 3, 3), (8,)]),
    "conv_transpose2d options": _case(
        lambda n: [(n, 6, 9, 8), (6, 4, 3, 3)], stride=2, padding=1, output_padding=1, groups=2, dilation=2
    ),
    "max_pool2d": _case(_images, kernel_size=2),
    "max_pool2d options": _case(_images, kernel_size=3, stride=2, padding=1, dilation=2, ceil_mode=True),
    "max_pool2d return_indices": _case(_images, kernel_size=3, stride=2, padding=1, return_indices=True),
    "max_pool2d unbatched": _case(lambda n: [(8, 12, 10 * n)], kernel_size=3),
    "avg_pool2d": _case(_images, kernel_size=2),
    "avg_pool2d options": _case(_images, kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "avg_pool2d divisor_override": _case(_images, kernel_size=(2, 3), divisor_override=5),
    "adaptive_avg_pool2d": _case(_images, output_size=(5, 7)),
    "adaptive_avg_pool2d global": _case(_images, output_size=1),
    "adaptive_avg_pool2d None": _case(_images, output_size=(None, 4)),
    "batch_norm": _normalisation(_images_and_channels, training=True),
    "batch_norm eval": _normalisation(_images_and_channels),
    "batch_norm 2-D": _normalisation(lambda n: [(20 * n, 40), (40,), (40,)], training=True),
    "batch_norm 3-D": _normalisation(lambda n: [(n, 8, 150)], training=True, momentum=0.3),
    "batch_norm 5-D": _normalisation(lambda n: [(n, 4, 5, 6, 7)], training=True),
    "layer_norm": _case(lambda n: [(n, 30, 40), (40,), (40,)], lambda f, x, w, b: f(x, (40,), w, b)),
    "layer_norm without weight": _case(lambda n: [(n, 30, 40)], normalized_shape=(30, 40)),
    "group_norm": _case(_images_and_channels, lambda f, x, w, b: f(x, 4, w, b)),
    "instance_norm": _normalisation(_images_and_channels),
    "instance_norm running": _normalisation(_images_and_channels, use_input_stats=False),
    "instance_norm alone": _case(_images),
    "dropout": _case(_images, _seeded, p=0.3),
    "dropout2d": _case(_images, _seeded, p=0.3),
    "relu": _case(_images),
    "relu6": _case(_images),
    "leaky_relu": _case(_images),
    "elu": _case(_images),
    "hardtanh": _case(_images),
    "sigmoid": _case(_images),
    "tanh": _case(_images),
    "gelu": _case(_images),
    "gelu tanh": _case(_images, approximate="tanh"),
    "silu": _case(_images),
    "softplus": _case(_images),
    "softmax": _case(_images, dim=1),
    "softmax last dimension": _case(_images, dim=-1),
    "log_softmax": _case(_images, dim=1),
    "cross_entropy": _case(_logits, data=classes_for),
    "cross_entropy options": _case(
        _logits, data=_classes_and_weight, ignore_index=3, label_smoothing=0.1, reduction="sum"
    ),
    "cross_entropy spatial": _case(_images, data=classes_for, reduction="none"),
    "cross_entropy probabilities": _case(_logits, data=lambda x: x.detach().flip(0).softmax(1)),
    "nll_loss": _case(_logits, data=classes_for),
    "nll_loss weight": _case(_logits, data=_classes_and_weight, reduction="sum"),
    "nll_loss spatial": _case(_images, data=classes_for, reduction="none"),
    "binary_cross_entropy_with_logits": _case(_images, data=probabilities_for),
    "binary_cross_entropy_with_logits weights": _case(
        _images,
        lambda f, x, target, weight, pos_weight: f(x, target, weight, pos_weight=pos_weight),
        lambda x: (probabilities_for(x), rand(13, dtype=x.dtype), rand(8, 1, 1, dtype=x.dtype)),
    ),
    "mse_loss": _case(_two_images),
    "mse_loss sum": _case(_two_images, reduction="sum"),
    "mse_loss none": _case(_two_images, reduction="none"),
    "flatten": _case(_images, start_dim=1),
}


def functions_of(case):
    """Our function and PyTorch's for a key of FUNCTIONS."""
    name = case.split()[0]
    return getattr(DF, name), getattr(F, name, None) or getattr(torch, name)


# The op that a function or layer runs, as dlkernels.counts() names it, where that is not its own name in lower case.
# A view needs no kernel.
_OPS = {
    "flatten": None,
    "gelu tanh": "gelu_tanh",
    "relu6": "hardtanh",
    "convtranspose2d": "conv_transpose2d",
    "maxpool2d": "max_pool2d",
    "avgpool2d": "avg_pool2d",
    "adaptiveavgpool2d": "adaptive_avg_pool2d",
    "batchnorm1d": "batch_norm",
    "batchnorm2d": "batch_norm",
    "sequential": "batch_norm",
    "layernorm": "layer_norm",
    "groupnorm": "group_norm",
    "instancenorm2d": "instance_norm",
    "leakyrelu": "leaky_relu",
    "logsoftmax": "log_softmax",
    "crossentropyloss": "cross_entropy",
    "nllloss": "nll_loss",
    "bcewithlogitsloss": "binary_cross_entropy_with_logits",
    "mseloss": "mse_loss",
}


def op_of(case):
    """The name in dlkernels.counts() for a key of FUNCTIONS or LAYERS; None: no kernel."""
    case = case.lower()
    name = case.split()[0]
    return _OPS.get(case, _OPS.get(name, name))


@dataclasses.dataclass(frozen=True)
class Layer:
    """A way to make a layer, `make(torch.nn)` or `make(dlkernels.nn)`, and the inputs to call it with."""

    make: Callable
    shape: tuple
    call: Callable = _plain
    data: Callable = lambda x: ()

    def inputs(self, dtype):
        (x,) = _leaves([self.shape], dtype)
        data = self.data(x)
        return [x, *(data if isinstance(data, tuple) else (data,))]


_IMAGE = (3, 4, 7, 9)

# "Layer" or "Layer form"
LAYERS = {
    "Linear": Layer(lambda nn: nn.Linear(9, 5), _IMAGE),
    "Linear without bias": Layer(lambda nn: nn.Linear(9, 5, bias=False), _IMAGE),
    "Conv1d": Layer(lambda nn: nn.Conv1d(4, 6, 3, stride=2, groups=2), (3, 4, 17)),
    "Conv2d": Layer(lambda nn: nn.Conv2d(4, 6, 3, bias=False), _IMAGE),
    "Conv2d unbatched": Layer(lambda nn: nn.Conv2d(4, 6, 3), _IMAGE[1:]),
    **{
        f"Conv{n}d {mode} {padding}": Layer(
            lambda nn, n=n, mode=mode, padding=padding: getattr(nn, f"Conv{n}d")(
                4, 6, 4, padding=padding, dilation=1, padding_mode=mode
            ),
            (3, 4, 9, 7)[: n + 2],
        )
        for n in (1, 2)
        for mode in ("zeros", "reflect", "replicate", "circular")
        for padding in (2, "same", "valid")
    },
    "Conv2d uneven": Layer(
        lambda nn: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, padding_mode="circular"), _IMAGE
    ),
    "ConvTranspose2d": Layer(lambda nn: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2, dilation=2), _IMAGE),
    "ConvTranspose2d output_size": Layer(
        lambda nn: nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False),
        _IMAGE,
        lambda layer, x: layer(x, output_size=(16, 19)),
    ),
    "MaxPool2d": Layer(lambda nn: nn.MaxPool2d(2), _IMAGE),
    "MaxPool2d options": Layer(
        lambda nn: nn.MaxPool2d(3, 2, 1, dilation=2, return_indices=True, ceil_mode=True), _IMAGE
    ),
    "AvgPool2d": Layer(lambda nn: nn.AvgPool2d(3, 2, 1, True, False), _IMAGE),
    "AvgPool2d divisor_override": Layer(lambda nn: nn.AvgPool2d((2, 3), divisor_override=7), _IMAGE),
    "AdaptiveAvgPool2d": Layer(lambda nn: nn.AdaptiveAvgPool2d((3, None)), _IMAGE),
    "AdaptiveAvgPool2d global": Layer(lambda nn: nn.AdaptiveAvgPool2d(1), _IMAGE),
    **{
        f"BatchNorm{n}d {form}": Layer(
            lambda nn, n=n, options=options: getattr(nn, f"BatchNorm{n}d")(4, **options), shape
        )
        for n, shape in ((1, (5, 4)), (2, _IMAGE))
        for form, options in {
            "default": {},
            "options": dict(eps=1e-3, momentum=0.3),
            "cumulative": dict(momentum=None),
            "without weight": dict(affine=False),
            "without statistics": dict(track_running_stats=False),
        }.items()
    },
    "BatchNorm1d 3-D": Layer(lambda nn: nn.BatchNorm1d(4), (3, 4, 7)),
    "Sequential": Layer(lambda nn: nn.Sequential(nn.ELU(), nn.BatchNorm2d(4), nn.ReLU(True)), _IMAGE),
    "Sequential ReLU6": Layer(lambda nn: nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.ReLU6()), (3, 4, 7)),
    "LayerNorm": Layer(lambda nn: nn.LayerNorm(9), _IMAGE),
    "LayerNorm without bias": Layer(lambda nn: nn.LayerNorm((7, 9), 1e-3, bias=False), _IMAGE),
    "LayerNorm without weight": Layer(lambda nn: nn.LayerNorm((7, 9), elementwise_affine=False), _IMAGE),
    "GroupNorm": Layer(lambda nn: nn.GroupNorm(2, 4, 1e-3), _IMAGE),
    "GroupNorm without weight": Layer(lambda nn: nn.GroupNorm(4, 4, affine=False), _IMAGE),
    "InstanceNorm2d": Layer(lambda nn: nn.InstanceNorm2d(4), _IMAGE),
    "InstanceNorm2d unbatched": Layer(lambda nn: nn.InstanceNorm2d(4), _IMAGE[1:]),
    "InstanceNorm2d options": Layer(
        lambda nn: nn.InstanceNorm2d(4, 1e-3, 0.3, affine=True, track_running_stats=True), _IMAGE
    ),
    "InstanceNorm2d momentum None": Layer(
        lambda nn: nn.InstanceNorm2d(4, momentum=None, track_running_stats=True), _IMAGE
    ),
    "ReLU": Layer(lambda nn: nn.ReLU(), _IMAGE),
    "ReLU6": Layer(lambda nn: nn.ReLU6(), _IMAGE),
    "LeakyReLU": Layer(lambda nn: nn.LeakyReLU(0.2), _IMAGE),
    "ELU": Layer(lambda nn: nn.ELU(0.7), _IMAGE),
    "Hardtanh": Layer(lambda nn: nn.Hardtanh(-0.5, 0.8), _IMAGE),
    "Sigmoid": Layer(lambda nn: nn.Sigmoid(), _IMAGE),
    "Tanh": Layer(lambda nn: nn.Tanh(), _IMAGE),
    "GELU": Layer(lambda nn: nn.GELU(), _IMAGE),
    "GELU tanh": Layer(lambda nn: nn.GELU("tanh"), _IMAGE),
    "SiLU": Layer(lambda nn: nn.SiLU(), _IMAGE),
    "Softplus": Layer(lambda nn: nn.Softplus(2, 0.5), _IMAGE),
    **{
        f"{name} inplace": Layer(
            lambda nn, name=name: getattr(nn, name)(inplace=True),
            _IMAGE,
            lambda layer, x: layer(x.clone()),
        )
        for name in ("ReLU", "ReLU6", "LeakyReLU", "ELU", "Hardtanh", "SiLU")
    },
    "Softmax": Layer(lambda nn: nn.Softmax(1), _IMAGE),
    "LogSoftmax": Layer(lambda nn: nn.LogSoftmax(-1), _IMAGE),
    "Dropout": Layer(lambda nn: nn.Dropout(0.3), _IMAGE),
    "Dropout2d": Layer(lambda nn: nn.Dropout2d(0.3), _IMAGE),
    "CrossEntropyLoss": Layer(lambda nn: nn.CrossEntropyLoss(), (6, 5), data=classes_for),
    "CrossEntropyLoss options": Layer(
        lambda nn: nn.CrossEntropyLoss(rand(4).abs(), ignore_index=2, reduction="sum", label_smoothing=0.1),
        _IMAGE,
        data=classes_for,
    ),
    "NLLLoss": Layer(lambda nn: nn.NLLLoss(), (6, 5), data=classes_for),
    "NLLLoss options": Layer(
        lambda nn: nn.NLLLoss(rand(4).abs(), ignore_index=2, reduction="none"), _IMAGE, data=classes_for
    ),
    "BCEWithLogitsLoss": Layer(lambda nn: nn.BCEWithLogitsLoss(), _IMAGE, data=probabilities_for),
    "BCEWithLogitsLoss options": Layer(
        lambda nn: nn.BCEWithLogitsLoss(rand(9), reduction="sum", pos_weight=rand(9, seed=1)),
        _IMAGE,
        data=probabilities_for,
    ),
    "MSELoss": Layer(lambda nn: nn.MSELoss(), _IMAGE, data=probabilities_for),
    "MSELoss none": Layer(lambda nn: nn.MSELoss(reduction="none"), _IMAGE, data=probabilities_for),
    "Flatten": Layer(lambda nn: nn.Flatten(1, 2), _IMAGE),
}
