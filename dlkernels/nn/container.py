"""Sequential, which runs neighbouring layers as one where that saves passes over memory."""

import torch
from torch.nn.modules.module import _has_any_global_hook

from dlkernels.nn.activation import ReLU, ReLU6
from dlkernels.nn.conv import Conv2d
from dlkernels.nn.norm import BatchNorm1d, BatchNorm2d
from dlkernels.nn.pooling import MaxPool2d


class Sequential(torch.nn.Sequential):
    """torch.nn.Sequential. A batch norm layer and the ReLU or ReLU6 that follows it run in one pass over memory; such
    an activation between a convolution and max-pooling runs after pooling. Both unless one of the layers has hooks or
    was compiled by itself."""

    def forward(self, input):
        layers, fused = _pool_first([*self]), False
        for layer, following in zip(layers, [*layers[1:], None]):
            if fused:  # with the one before
                fused = False
                continue
            activation = _activation(following) if _is_batch_norm(layer) else None
            fused = activation is not None
            input = layer.forward_then(activation, input) if fused else layer(input)
        return input


def _pool_first(layers):
    """The layers, of which activations between a convolution and max-pooling change places with the latter. The two
    commute, in gradients too, and pooling leaves fewer elements."""
    order = [*layers]
    for i, (layer, following, last) in enumerate(zip(layers, layers[1:], layers[2:])):
        if _is_convolution(layer) and _activation(following) and _is_max_pool(last):
            order[i + 1 : i + 3] = last, following
    return order


def _is_batch_norm(layer):
    return type(layer) in (BatchNorm1d, BatchNorm2d) and _only_runs_forward(layer)


def _is_convolution(layer):
    return type(layer) is Conv2d and _only_runs_forward(layer)


def _is_max_pool(layer):
    """Max-pooling of windows that all have an element of the input: -Inf, of padding only, must not be rectified."""
    if type(layer) is not MaxPool2d or layer.return_indices:
        return False
    has_elements = layer.dilation in (1, (1, 1)) or layer.padding in (0, (0, 0))
    return has_elements and _only_runs_forward(layer)


def _activation(layer):
    """What batch_norm calls the activation that `layer` is, or None."""
    if type(layer) is ReLU and _only_runs_forward(layer):
        return "relu"
    if type(layer) is ReLU6 and (layer.min_val, layer.max_val) == (0, 6) and _only_runs_forward(layer):
        return "relu6"
    return None


def _only_runs_forward(module):
    """Whether calling `module` does no more than its `forward`."""
    hooks = module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    return not (hooks or module._compiled_call_impl or "forward" in vars(module) or _has_any_global_hook())
