"""Every function and layer that the library promises exists under its PyTorch name, and runs our kernels, forward and
backward, in float32 and float64: by our own count, and by what PyTorch's profiler saw."""

import contextlib
import inspect

import pytest
import torch
from cases import FUNCTIONS, LAYERS, functions_of, op_of
from util import DTYPES, kernel_ran

import dlkernels.functional as DF
import dlkernels.nn

pytestmark = pytest.mark.usefixtures("one_thread")

FUNCTION_NAMES = """
    matmul linear conv1d conv2d conv_transpose2d max_pool2d avg_pool2d adaptive_avg_pool2d batch_norm layer_norm
    group_norm instance_norm dropout dropout2d relu relu6 leaky_relu elu hardtanh sigmoid tanh gelu silu softplus
    softmax log_softmax cross_entropy nll_loss binary_cross_entropy_with_logits mse_loss flatten
"""
LAYER_NAMES = """
    Linear Conv1d Conv2d ConvTranspose2d MaxPool2d AvgPool2d AdaptiveAvgPool2d BatchNorm1d BatchNorm2d LayerNorm
    GroupNorm InstanceNorm2d Dropout Dropout2d ReLU ReLU6 LeakyReLU ELU Hardtanh Sigmoid Tanh GELU SiLU Softplus Softmax
    LogSoftmax CrossEntropyLoss NLLLoss BCEWithLogitsLoss MSELoss Flatten Sequential
"""


def names_in(cases):
    return sorted({case.split()[0] for case in cases})


def test_every_function_is_there_and_has_a_case():
    public = [name for name, value in vars(DF).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert sorted(public) == names_in(FUNCTIONS) == sorted(FUNCTION_NAMES.split())


def test_every_layer_is_there_and_has_a_case():
    assert sorted(dlkernels.nn.__all__) == names_in(LAYERS) == sorted(LAYER_NAMES.split())


def parameters(function):
    """(name, default) of each parameter; where Python cannot tell, as the first line of the documentation has it."""
    try:
        signature = inspect.signature(function)
        known = "args" not in signature.parameters
    except ValueError:  # a builtin
        known = False
    if not known:
        line = function.__doc__.strip().splitlines()[0].partition(" ->")[0]
        scope = {}
        exec(f"def {line}: pass", scope)
        signature = inspect.signature(scope[line.partition("(")[0]])
    return [(p.name, p.default) for p in signature.parameters.values() if p.name != "out"]


@pytest.mark.parametrize("name", FUNCTION_NAMES.split())
def test_signature(name):
    ours, theirs = functions_of(name)
    assert parameters(ours) == parameters(theirs)
    assert ours.__doc__


# What our ops may ask of PyTorch for any op: memory, views, copies.
HELPERS = """
    empty empty_like empty_strided new_empty new_empty_strided new_zeros zeros zeros_like ones ones_like full resize_
    view view_as reshape _reshape_alias _unsafe_view as_strided expand expand_as broadcast_tensors select slice
    slice_backward narrow unfold transpose t permute squeeze unsqueeze flatten alias detach contiguous clone copy_ to
    _to_copy item _local_scalar_dense fill_ zero_
"""
# And for some ops, arithmetic on few numbers (the statistics of channels, a seed, the sum over a broadcast dimension),
# the sign of mse_loss's other gradient, and the padding modes, which are torch.nn's own functions.
ARITHMETIC = {
    "batch_norm": "mul mul_ add_",
    "instance_norm": "mul mul_ add add_ repeat arange cat mean sum div_",
    "dropout": "randint random_",
    "dropout2d": "randint random_",
    "matmul": "sum",
    "mse_loss": "neg",
    **{
        f"conv{n}d": f"pad _pad_circular add_ reflection_pad{n}d reflection_pad{n}d_backward replication_pad{n}d "
        f"replication_pad{n}d_backward"
        for n in (1, 2)
    },
}


def dispatched(function):
    """The ops that PyTorch's dispatcher ran in `function()`, those called inside of other ops too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        function()
    return {event.name for event in profile.events()}


def check_ours_alone(op, function, inputs):
    """`function(*inputs)` and its gradients come from our kernel of `op`; PyTorch's ops only help."""

    def step():
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        differentiable = [y for y in outputs if y.requires_grad]
        assert differentiable
        torch.autograd.backward(differentiable, [torch.ones_like(y) for y in differentiable])

    with kernel_ran(op) if op else contextlib.nullcontext():
        names = dispatched(step)
    ours = [name for name in names if name.startswith("dlkernels::")]
    assert bool(ours) == bool(op), names
    theirs = {name.removeprefix("aten::") for name in names if name.startswith("aten::")}
    assert theirs <= {*HELPERS.split(), *ARITHMETIC.get(op, "").split()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_function_runs_our_kernels(case, dtype):
    function = FUNCTIONS[case].bind(functions_of(case)[0])
    check_ours_alone(op_of(case), function, FUNCTIONS[case].inputs(2, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS)
def test_layer_runs_our_kernels(case, dtype):
    layer = LAYERS[case].make(dlkernels.nn).to(dtype)
    check_ours_alone(op_of(case), lambda *inputs: LAYERS[case].call(layer, *inputs), LAYERS[case].inputs(dtype))


def test_a_fallback_is_seen():
    """Both checks fail when PyTorch computes."""
    half = torch.ones(4, dtype=torch.float16, requires_grad=True)
    with pytest.raises(AssertionError, match="relu did not run"):
        check_ours_alone("relu", DF.relu, [half])
    with pytest.raises(AssertionError, match="sigmoid"):
        check_ours_alone("relu", lambda x: DF.relu(x).sigmoid(), [half.float()])
