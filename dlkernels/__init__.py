"""Hand-written CPU kernels for deep-learning layers, drop-in for PyTorch."""

import torch  # noqa: F401  (loads the libraries that the extension links to)

from dlkernels import _C, functional
from dlkernels._C import counts, reset_counts

__all__ = ["counts", "functional", "reset_counts"]

# torch.compile puts calls of these into its graph instead of breaking it.
for _name in (
    # matmul
    # conv2d
    # pool2d
    # norms
    "batch_norm",
    "instance_norm",
    "layer_norm",
    "group_norm",
    # dropout
    # softmax and losses
    "softmax",
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "activation",
):
    torch.compiler.allow_in_graph(getattr(_C, _name))
