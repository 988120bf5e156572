"""Hand-written CPU and CUDA kernels for deep-learning layers, drop-in for PyTorch.

model = dlkernels.convert(model)        # torch.nn layers become dlkernels.nn layers, in place
dlkernels.functional.conv2d(x, weight)  # or call the functions
"""

import torch

from dlkernels import _torch_version

_torch_version.check()

from dlkernels import _C, functional, nn  # noqa: E402  (after the check, so that a mismatch is one readable line)
from dlkernels._C import counts, reset_counts  # noqa: E402
from dlkernels.conversion import convert, coverage, revert  # noqa: E402
from dlkernels.info import info  # noqa: E402
from dlkernels.memory import empty_cache, memory_stats, set_cache_limit, use_caching_allocator  # noqa: E402

__version__ = info()["dlkernels"]

__all__ = [
    "convert",
    "counts",
    "coverage",
    "empty_cache",
    "functional",
    "info",
    "memory_stats",
    "nn",
    "reset_counts",
    "revert",
    "set_cache_limit",
    "use_caching_allocator",
]

# torch.compile puts calls of these into its graph instead of breaking it.
for _name in (
    "linear",
    "matmul",
    "conv1d",
    "conv2d",
    "conv_transpose2d",
    # pool2d
    "max_pool2d",
    "max_pool2d_with_indices",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    # norms
    "batch_norm",
    "instance_norm",
    "layer_norm",
    "group_norm",
    # dropout
    "dropout",
    # softmax and losses
    "softmax",
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "activation",
):
    torch.compiler.allow_in_graph(getattr(_C, _name))
