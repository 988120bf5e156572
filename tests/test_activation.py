"""Activations: values, gradients, in-place forms, special values."""

import pytest
import torch
import torch.nn.functional as F

import dlkernels.functional as DF
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, rand

# name of the op counted, our function, PyTorch's
CASES = {
    "relu": ("relu", DF.relu, F.relu),
    "relu6": ("hardtanh", DF.relu6, F.relu6),
    "leaky_relu": ("leaky_relu", DF.leaky_relu, F.leaky_relu),
    "leaky_relu_negative_slope": ("leaky_relu", lambda x: DF.leaky_relu(x, -0.3), lambda x: F.leaky_relu(x, -0.3)),
    "elu": ("elu", DF.elu, F.elu),
    "elu_negative_alpha": ("elu", lambda x: DF.elu(x, -0.7), lambda x: F.elu(x, -0.7)),
    "hardtanh": ("hardtanh", lambda x: DF.hardtanh(x, -0.4, 0.9), lambda x: F.hardtanh(x, -0.4, 0.9)),
    "sigmoid": ("sigmoid", DF.sigmoid, torch.sigmoid),
    "tanh": ("tanh", DF.tanh, torch.tanh),
    "gelu": ("gelu", DF.gelu, F.gelu),
    "gelu_tanh": ("gelu_tanh", lambda x: DF.gelu(x, approximate="tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": ("silu", DF.silu, F.silu),
    "softplus": ("softplus", DF.softplus, F.softplus),
    "softplus_options": ("softplus", lambda x: DF.softplus(x, 2.5, 3), lambda x: F.softplus(x, 2.5, 3)),
}
INPLACE = ["relu", "relu6", "leaky_relu", "elu", "hardtanh", "silu"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, layout, dtype):
    op, ours, theirs = CASES[name]
    x = LAYOUTS[layout](3 * rand(2, 5, 7, 9, dtype=dtype)).requires_grad_()
    check(ours, theirs, [x], op=op)


@pytest.mark.parametrize("name", CASES)
def test_lengths(name):
    op, ours, theirs = CASES[name]
    for n in [*range(0, 50), 127, 1000, 100_003]:
        check(ours, theirs, [3 * rand(n, seed=n).requires_grad_()], op=op)
