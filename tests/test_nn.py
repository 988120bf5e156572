"""Every layer against its torch.nn namesake: outputs, gradients, buffers over several steps, and all that a checkpoint,
a copy or a reader of the model sees."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from cases import LAYERS
from util import DTYPES, assert_close_to_exact, rand, to_double

import dlkernels.functional as DF
import dlkernels.nn

pytestmark = pytest.mark.usefixtures("one_thread")

RANDOM = ["Dropout", "Dropout2d"]  # in training their values are not PyTorch's
every_layer = pytest.mark.parametrize("case", LAYERS)


def randomise(layer):
    """Values that no wrong use of a parameter or buffer hides; variances stay positive."""
    for i, (name, value) in enumerate(layer.state_dict().items()):
        if value.is_floating_point():
            random = rand(*value.shape, seed=20 + i)
            value.copy_(random.square() + 0.5 if "var" in name or "weight" in name else random)


def both(case, dtype=torch.float32):
    """PyTorch's layer with random parameters, and ours with the same."""
    theirs, ours = (LAYERS[case].make(nn).to(dtype) for nn in (torch.nn, dlkernels.nn))
    randomise(theirs)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    return theirs, ours


def step(case, layer, inputs):
    """Outputs, and gradients of the inputs and parameters."""
    outputs = LAYERS[case].call(layer, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dy = rand(*outputs[0].shape, dtype=outputs[0].dtype, seed=100)
    wanted = [x for x in inputs if x.requires_grad] + list(layer.parameters())
    return *outputs, *torch.autograd.grad(outputs[0], wanted, dy)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", DTYPES)
@every_layer
def test_values_gradients_and_buffers(case, dtype, training):
    theirs, ours = (layer.train(training) for layer in both(case, dtype))
    if training and case in RANDOM:
        theirs.p = ours.p = 0.0
    exact = copy.deepcopy(theirs).double()
    for factor in (1.0, -2.0, 0.5):  # three steps: the running statistics move
        x, *data = LAYERS[case].inputs(dtype)
        inputs = [(factor * x.detach() + factor).requires_grad_(), *data]
        steps = [step(case, ours, inputs), step(case, theirs, inputs), step(case, exact, to_double(inputs))]
        buffers = [list(layer.buffers()) for layer in (ours, theirs, exact)]
        for results in (steps, buffers):
            for i, values in enumerate(zip(*results, strict=True)):
                assert_close_to_exact(f"result {i}", *values, roundings=8)


@pytest.mark.parametrize("case", RANDOM)
def test_dropout_in_training(case):
    layer, x = getattr(dlkernels.nn, case)(0.3), rand(64, 8, 3, 3)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    assert torch.equal(y, getattr(DF, case.lower())(x, 0.3))
    assert 0.2 < (y == 0).float().mean() < 0.4


@every_layer
def test_state_dict(case):
    theirs, ours = both(case)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    fresh = LAYERS[case].make(torch.nn)
    fresh.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(fresh.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@every_layer
def test_looks_like_its_namesake(case):
    theirs, ours = both(case)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs)) and type(ours) is getattr(dlkernels.nn, type(theirs).__name__)
    assert inspect.signature(type(ours)) == inspect.signature(type(theirs))
    assert vars(ours).keys() == vars(theirs).keys()


@every_layer
def test_initial_weights_of_a_seed(case):
    def seeded(nn):
        torch.manual_seed(7)
        return LAYERS[case].make(nn).state_dict()

    torch.testing.assert_close(seeded(dlkernels.nn), seeded(torch.nn), rtol=0, atol=0)


def saved_and_loaded(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved_and_loaded])
@every_layer
def test_copies(case, copied):
    layer = both(case)[1].eval()
    clone = copied(layer)
    assert type(clone) is type(layer) and repr(clone) == repr(layer)
    inputs = LAYERS[case].inputs(torch.float32)
    torch.testing.assert_close(step(case, clone, inputs), step(case, layer, inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda nn: nn.BatchNorm1d(3), (2, 3, 4, 5)),
        (lambda nn: nn.BatchNorm2d(3), (2, 3)),
        (lambda nn: nn.InstanceNorm2d(3), (2, 3)),
        (lambda nn: nn.BatchNorm2d(3), (1, 3, 1, 1)),
        (lambda nn: nn.Conv2d(3, 2, 3), (2, 4, 5, 5)),
        (lambda nn: nn.Conv2d(3, 2, 3, padding=9, padding_mode="reflect"), (2, 3, 5, 5)),
        (lambda nn: nn.ConvTranspose2d(3, 2, 3), (2, 4, 5, 5)),
        (lambda nn: nn.Linear(3, 2), (2, 4)),
        (lambda nn: nn.LayerNorm(3), (2, 4)),
        (lambda nn: nn.GroupNorm(1, 3), (2, 4, 5)),
        (lambda nn: nn.MaxPool2d(3), (2, 2)),
        (lambda nn: nn.Dropout(1.5), (2, 2)),
        (lambda nn: nn.Softmax(4), (2, 2)),
    ],
)
def test_errors_are_of_pytorchs_type(make, shape):
    with pytest.raises(Exception) as theirs:  # noqa: B017
        make(torch.nn)(rand(*shape))
    with pytest.raises(theirs.type) as ours:
        make(dlkernels.nn)(rand(*shape))
    assert ours.type is theirs.type


def test_conv_transpose2d_output_size_out_of_reach():
    layers = [nn.ConvTranspose2d(3, 2, 3, stride=2) for nn in (torch.nn, dlkernels.nn)]
    for layer in layers:
        with pytest.raises(ValueError, match="requested an output size"):
            layer(rand(2, 3, 4, 4), output_size=(90, 90))
