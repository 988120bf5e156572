"""convert, revert and coverage: what they change, and that nothing else changes; and a converted model under all that
PyTorch offers: compilation, function transforms, autocast, checkpoints, double backward, threads, devices."""

import concurrent.futures
import copy
import pickle

import pytest
import torch
from torch import nn
from util import kernel_ran, rand

import dlkernels

pytestmark = pytest.mark.usefixtures("one_thread")


class Odd(nn.Linear):
    """A subclass whose behaviour convert cannot know."""

    def forward(self, input):
        return super().forward(input) + 1


class Net(nn.Module):
    """Nested, with a shared layer, a buffer, a subclass, and a layer without a kernel."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, padding=1), "act": nn.SiLU(), "pool": nn.MaxPool2d(2)})
        self.shared = self.block["conv"]
        self.odd = Odd(8, 8)
        self.mish = nn.Mish()
        self.head = nn.Linear(8, 5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x):
        x = self.block["act"](self.block["conv"](self.stem(x)))
        x = self.block["pool"](self.shared(x)).mean((2, 3))
        return self.head(self.mish(self.odd(x))) * self.scale


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def cnn(dropout=0.0, seed=0):
    """Only layers with kernels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout),
        nn.Conv2d(8, 8, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def images(n=4, **options):
    return rand(n, 3, 10, 10, **options)


def results(model, x):
    """The output, the gradients of the input and the parameters, and the state after a step."""
    x = x.detach().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y * rand(*y.shape, dtype=y.dtype, seed=1)).sum().backward()
    return y, x.grad, [p.grad for p in model.parameters()], model.state_dict()


def assert_same(model, reference, x, **tolerance):
    torch.testing.assert_close(results(model, x), results(reference, x), **tolerance)


def types(model):
    return {name: type(module) for name, module in model.named_modules()}


def identities(model):
    named = [*model.named_modules(), *model.named_parameters(), *model.named_buffers()]
    return {name: id(value) for name, value in named}


def test_round_trip():
    model = net()
    reference, before, ids = copy.deepcopy(model), types(model), identities(model)
    keys = list(model.state_dict())
    assert dlkernels.convert(model) is model
    converted = types(model)
    changed = {name for name in before if converted[name] is not before[name]}
    assert changed == {"stem", "stem.0", "stem.1", "stem.2", "block.conv", "block.act", "block.pool", "head"}
    assert all(converted[name] is getattr(dlkernels.nn, before[name].__name__) for name in changed)
    assert model.shared is model.block["conv"]
    assert identities(model) == ids and list(model.state_dict()) == keys
    assert_same(model, reference, images())
    assert dlkernels.revert(model) is model
    assert types(model) == before and identities(model) == ids
    assert_same(model, reference, images())


def test_twice_is_harmless():
    model = net()
    once = types(dlkernels.convert(model))
    assert types(dlkernels.convert(model)) == once
    assert types(dlkernels.revert(dlkernels.revert(model))) == types(net())


def test_a_layer_itself():
    layer = nn.Linear(3, 2)
    assert type(dlkernels.convert(layer)) is dlkernels.nn.Linear
    assert type(dlkernels.revert(layer)) is nn.Linear


@pytest.mark.parametrize("function", [dlkernels.convert, dlkernels.revert, dlkernels.coverage])
@pytest.mark.parametrize("wrong", [[nn.Linear(2, 2)], nn.Linear, None, torch.ones(2)])
def test_not_a_module(function, wrong):
    with pytest.raises(TypeError, match=rf"{function.__name__}: model must be a torch.nn.Module, got \w+"):
        function(wrong)


def test_flags_stay():
    model = net().eval()
    model.stem[1].train()
    model.head.requires_grad_(False)
    dlkernels.convert(model)
    assert [m.training for m in model.modules() if m.training] == [True]
    assert model.stem[1].training and not model.head.weight.requires_grad


def test_hooks_stay():
    model, called = cnn(), []
    model[0].register_forward_pre_hook(lambda module, args: called.append("pre"))
    model[0].register_forward_hook(lambda module, args, y: called.append("forward") or 2 * y)
    model[0].register_full_backward_hook(lambda module, dx, dy: called.append("backward"))
    model[0].register_state_dict_post_hook(lambda module, state, *_: called.append("state_dict"))
    model[0].weight.register_hook(lambda grad: called.append("gradient"))
    reference = copy.deepcopy(model)
    dlkernels.convert(model)
    assert_same(model, reference, images())
    assert [called.count(name) for name in ("pre", "forward", "backward", "state_dict")] == [2] * 4
    assert called.count("gradient") == 1  # deepcopy drops a tensor's hooks: only the model has it
    # what a user adds after converting stays when reverting
    model[1].register_forward_hook(lambda module, args, y: called.append("late"))
    dlkernels.revert(model)(images())
    assert "late" in called


def test_subclasses_and_overrides_are_left_alone():
    model = nn.Sequential(Odd(4, 4), nn.Linear(4, 4), nn.LazyLinear(3))
    model[1].forward = lambda x: x * 3
    before = types(model)
    dlkernels.convert(model)
    assert types(model) == {**before, "": dlkernels.nn.Sequential}
    assert torch.equal(model[1](torch.ones(2, 4)), torch.full((2, 4), 3.0))
    model(torch.ones(2, 4))  # a lazy layer becomes plain when it has seen an input
    assert type(dlkernels.convert(model)[2]) is dlkernels.nn.Linear


def parametrise(model):
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[9])


@pytest.mark.parametrize("change", [parametrise, lambda model: nn.utils.weight_norm(model[0])], ids=["new", "old"])
@pytest.mark.parametrize("convert_first", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrised_weights(convert_first, change):
    reference, model = cnn(), cnn()
    torch.manual_seed(1)
    change(reference)
    torch.manual_seed(1)
    for function in (dlkernels.convert, change) if convert_first else (change, dlkernels.convert):
        function(model)
    assert_same(model, reference, images())
    assert_same(dlkernels.revert(model), reference, images())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("no_grad", [True, False], ids=["no_grad", "grad"])
def test_transformer(training, no_grad):
    """In eval mode without gradients PyTorch's encoder takes a fused path that reads the layers' weights."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False
    ).train(training)
    attention = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    x, padding = rand(2, 6, 16), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])

    def run():
        with torch.set_grad_enabled(not no_grad):
            return encoder(x, src_key_padding_mask=padding)[~padding], attention(x, x, x)

    expected = run()
    dlkernels.convert(encoder)
    dlkernels.convert(attention)
    assert type(encoder.layers[0].linear1) is dlkernels.nn.Linear
    torch.testing.assert_close(run(), expected)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_made_before_continues(optimizer):
    options = dict(lr=0.01, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
    models = [cnn().double(), cnn().double()]
    optimizers = [optimizer(model.parameters(), **options) for model in models]

    def step(seed):
        for model, opt in zip(models, optimizers):
            opt.zero_grad()
            model(images(seed=seed, dtype=torch.float64)).square().mean().backward()
            opt.step()

    for seed in range(6):
        if seed == 3:
            assert optimizers[0].state_dict()["state"]  # momentum that must live on
            dlkernels.convert(models[0])
        step(seed)
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(optimizers[0].state_dict(), optimizers[1].state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies(copied):
    model = dlkernels.convert(net())
    clone = copied(model)
    assert types(clone) == types(model) and clone.shared is clone.block["conv"]
    assert_same(clone, model, images(), rtol=0, atol=0)


# ---- coverage


def test_coverage():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 4).half(), Odd(4, 4), nn.Mish(), nn.Linear(4, 4))
    model[4].forward = lambda x: x
    model.add_module("meta", nn.Linear(4, 4, device="meta"))
    model.add_module("outer", nn.Sequential(nn.ReLU()))
    model.add_module("named", type("Named", (nn.Sequential,), {})(nn.GELU()))
    rows = [
        ("0", "torch.nn.Conv2d", "convertible", ""),
        ("1", "torch.nn.Linear", "convertible", "runs PyTorch's op: no kernels for torch.float16"),
        ("2", "test_convert.Odd", "left alone", "a subclass of torch.nn.Linear, whose behaviour may differ"),
        ("3", "torch.nn.Mish", "left alone", "no kernel for this layer"),
        ("4", "torch.nn.Linear", "left alone", "its forward is overridden on the instance"),
        ("meta", "torch.nn.Linear", "convertible", "runs PyTorch's op: no kernels for meta"),
        ("outer.0", "torch.nn.ReLU", "convertible", ""),
        ("named.0", "torch.nn.GELU", "convertible", ""),
    ]
    coverage = dlkernels.coverage(model)
    assert [(row.name, row.layer, row.status, row.reason) for row in coverage] == rows


def test_coverage_is_of_what_convert_does():
    model = net()
    would = {row.name: row for row in dlkernels.coverage(model)}
    before = types(model)
    done = {row.name: row for row in dlkernels.coverage(dlkernels.convert(model))}
    assert would.keys() == done.keys()
    for name, row in done.items():
        assert (row.status == "converted") == (would[name].status == "convertible")
        assert (row.status == "converted") == (type(model.get_submodule(name)) is not before[name])
    lines = str(dlkernels.coverage(model)).splitlines()
    assert len(lines) == len(done) + 2 and lines[0].split() == ["layer", "class", "status", "why"]
    assert lines[-1] == "7 converted, 2 left alone"


# ---- Under PyTorch's other features


@pytest.mark.parametrize("dynamic", [False, None], ids=["static", "automatic"])
def test_compile(dynamic):
    """Forward and backward in one graph, batch norm's buffers included; and for a second batch size."""
    torch._dynamo.reset()
    eager = dlkernels.convert(cnn())
    model = copy.deepcopy(eager)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (4, 6, 3):
        x = images(n).requires_grad_()
        got, expected = compiled(x), eager(x)
        torch.testing.assert_close(got, expected)
        grads = [
            torch.autograd.grad(y.square().sum(), [x, *m.parameters()]) for y, m in ((got, model), (expected, eager))
        ]
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(model.state_dict(), eager.state_dict())


def test_function_transforms():
    """grad, and per-sample gradients by vmap; batch norm in eval mode, since vmap cannot update its buffers."""
    model = cnn().eval()
    reference, parameters = copy.deepcopy(model), dict(model.named_parameters())
    dlkernels.convert(model)

    def loss(module, parameters, x):
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    def per_sample(module):
        gradient = torch.func.grad(lambda p, x: loss(module, p, x.unsqueeze(0)))
        return torch.func.vmap(gradient, in_dims=(None, 0))(parameters, images())

    torch.testing.assert_close(loss(model, parameters, images()), loss(reference, parameters, images()))
    gradients = [torch.func.grad(lambda p: loss(m, p, images()))(parameters) for m in (model, reference)]  # noqa: B023
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(per_sample(model), per_sample(reference))


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training):
    model = cnn().train(training)
    reference = copy.deepcopy(model)
    dlkernels.convert(model)
    dtypes = [[], []]
    for found, module in zip(dtypes, (model, reference)):
        for layer in module:
            layer.register_forward_hook(lambda m, args, y, found=found: found.append(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = model(images()), reference(images())
    assert dtypes[0] == dtypes[1] and torch.bfloat16 in dtypes[0]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.float().square().sum(), list(model.parameters())),
        torch.autograd.grad(expected.float().square().sum(), list(reference.parameters())),
    )


def test_gradient_penalty():
    """Double backward through a whole network: the gradients of the gradient's norm."""

    def penalty_gradients(model):
        x = images(dtype=torch.float64).requires_grad_()
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad((dx.flatten(1).norm(dim=1) - 1).square().sum(), [x, *model.parameters()])

    reference = cnn().double()
    model = dlkernels.convert(copy.deepcopy(reference))
    torch.testing.assert_close(penalty_gradients(model), penalty_gradients(reference), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_with_dropout(use_reentrant):
    """Recomputation draws the same mask; and its early stop, an exception that a hook raises, passes our ops."""
    model = dlkernels.convert(cnn(dropout=0.5))

    def gradient(run):
        torch.manual_seed(3)
        x = images().requires_grad_()
        run(x).square().sum().backward()
        return x.grad

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=use_reentrant)

    assert torch.equal(gradient(checkpointed), gradient(model))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(mode, training):
    model = cnn().train(training)
    reference = copy.deepcopy(model)
    dlkernels.convert(model)
    with mode(), kernel_ran("conv2d"):
        y = model(images())
    assert not y.requires_grad
    torch.testing.assert_close(y, reference(images()).detach())


def test_four_python_threads():
    """Kernels release the GIL: separate models train at once, each as if it were alone."""
    torch.set_num_threads(2)
    models = [dlkernels.convert(cnn(seed=seed)) for seed in range(4)]
    alone = [results(copy.deepcopy(model), images(seed=seed)) for seed, model in enumerate(models)]

    def many(seed):
        for _ in range(20):
            found = results(copy.deepcopy(models[seed]), images(seed=seed))
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(many, range(4)))
    torch.testing.assert_close(together, alone)


def test_meta_device():
    model = dlkernels.convert(cnn()).to("meta")
    y = model(images().to("meta"))
    assert y.is_meta and y.shape == (4, 5)
    y.sum().backward()
    assert all(p.grad.is_meta for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_falls_back_and_is_counted(dtype):
    reference = cnn().to(dtype)
    model = dlkernels.convert(copy.deepcopy(reference))
    dlkernels.reset_counts()
    assert_same(model, reference, images(dtype=dtype), rtol=0, atol=0)
    counts = dlkernels.counts()
    assert counts["conv2d"] == {"kernel": 0, "fallback": 2}
    assert not any(count["kernel"] for count in counts.values())
