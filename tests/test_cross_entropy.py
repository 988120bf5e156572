"""Cross-entropy and negative log-likelihood: targets of every kind and shape, all options, special values, errors."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, rand

import dlkernels.functional as DF

REDUCTIONS = ["mean", "sum", "none"]
INF, NAN = float("inf"), float("nan")


def indices(*shape, classes, seed=0):
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(classes, shape, generator=generator, device="cpu").to(torch.get_default_device())


def compare(name, x, target, weight=None, dys=None, **options):
    """`weight` is passed through check's inputs, so that it follows them to float64."""

    def ours(x, target, weight):
        return getattr(DF, name)(x, target, weight, **options)

    def theirs(x, target, weight):  # PyTorch's nll_loss fails in backward on spatial inputs that are not contiguous
        return getattr(F, name)(x.contiguous(), target, weight, **options)

    check(ours, theirs, [x, target, weight], op=name, dys=dys)


def logits(*shape, name="cross_entropy", **options):
    x = 3 * rand(*shape, **options)
    return x if name == "cross_entropy" else x.log_softmax(1 if len(shape) > 1 else 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, reduction, layout, dtype):
    x = LAYOUTS[layout](logits(4, 5, 7, 9, name=name, dtype=dtype)).requires_grad_()
    compare(name, x, LAYOUTS[layout](indices(4, 7, 9, classes=5)), reduction=reduction)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("shape", [(6,), (20, 6), (20, 6, 3), (5, 6, 4, 17), (2, 6, 3, 4, 5), (1, 1), (3, 1, 2)])
def test_ranks(name, shape):
    target = indices(*shape[:1] * (len(shape) > 1), *shape[2:], classes=shape[min(1, len(shape) - 1)])
    for reduction in REDUCTIONS:
        compare(name, logits(*shape, name=name).requires_grad_(), target, reduction=reduction)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_lengths(name):
    for classes, inner in itertools.chain(
        ((c, 1) for c in [*range(1, 36), 160, 161, 1000]), ((4, i) for i in [*range(1, 36), 64, 65, 129, 511, 512, 513])
    ):
        x = logits(20, classes, inner, name=name).squeeze(2).requires_grad_()
        compare(name, x, indices(*x.shape[:1], *x.shape[2:], classes=classes))


# Every combination of the options, on rows and on columns.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(40, 19), (5, 19, 23)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["indices", "ignored", "probabilities"])
def test_options(kind, smoothing, weighted, shape, dtype):
    x = logits(*shape, dtype=dtype).requires_grad_()
    weight = rand(19, dtype=dtype).exp() if weighted else None
    target = indices(shape[0], *shape[2:], classes=19)
    if kind == "probabilities":
        target = rand(*shape, dtype=dtype, seed=1).softmax(1).requires_grad_(weighted)
    for reduction in REDUCTIONS:
        ignore_index = 3 if kind == "ignored" else -100
        compare(
            "cross_entropy",
            x,
            target,
            weight,
            reduction=reduction,
            label_smoothing=smoothing,
            ignore_index=ignore_index,
        )


@pytest.mark.parametrize("shape", [(40, 19), (5, 19, 23)])
def test_nll_options(shape):
    target = indices(shape[0], *shape[2:], classes=19)
    for reduction, ignore_index in itertools.product(REDUCTIONS, [-100, 3]):
        x = logits(*shape, name="nll_loss").requires_grad_()
        compare("nll_loss", x, target, rand(19).exp(), reduction=reduction, ignore_index=ignore_index)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_uint8_targets(name):
    compare(name, logits(20, 7, name=name).requires_grad_(), indices(20, classes=7).byte())


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 4)])
def test_empty(name, reduction, shape):
    target = indices(shape[0], *shape[2:], classes=3)
    compare(name, rand(*shape).requires_grad_(), target, reduction=reduction)


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_average(name, reduction):
    x = logits(20, 7, name=name).requires_grad_()
    compare(name, x, torch.full((20,), -100), reduction=reduction)
    compare(name, x, indices(20, classes=7), torch.zeros(7), reduction=reduction)


def test_confident_and_offset_logits():
    x = logits(30, 11)
    target = x.argmax(1)
    for logit in (10 * x, x + 1000, 5 * x - 200):
        for t in (target, indices(30, classes=11)):
            compare("cross_entropy", logit.requires_grad_(), t, reduction="none")


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("classes", [20, 300])
def test_nan_and_inf(target, columns, classes):
    x = logits(8, classes, columns)
    for i, special in enumerate([NAN, INF, -INF]):
        x[i, 1] = special
    x[4] = -INF
    compare("cross_entropy", x.requires_grad_(), torch.full((8, columns), target), reduction="none")


@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 3)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}, {"ignore_index": 1}, {"reduction": "none"}])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(shape, options, weighted):
    x = rand(*shape, dtype=torch.float64).requires_grad_()
    weight = rand(4, dtype=torch.float64).exp() if weighted else None
    target = indices(shape[0], *shape[2:], classes=4)
    check_gradients(lambda x: DF.cross_entropy(x, target, weight, **options), [x])
    if "label_smoothing" not in options:
        check_gradients(lambda x: DF.nll_loss(x, target, weight, **options), [x])
    if "ignore_index" not in options:
        probabilities = rand(*shape, dtype=torch.float64, seed=1).softmax(1).detach().requires_grad_()
        check_gradients(lambda x, t: DF.cross_entropy(x, t, weight, **options), [x, probabilities])


@pytest.mark.parametrize("shape", [(30, 7), (3, 7, 10)])
def test_expanded_output_gradient(shape):
    target = indices(shape[0], *shape[2:], classes=7)
    dys = [rand(1).expand(target.shape)]
    compare("cross_entropy", logits(*shape).requires_grad_(), target, reduction="none", dys=dys)


@pytest.mark.parametrize("shape", [(5000, 40), (700, 300), (3, 40, 3000)])
def test_threads(shape):
    target = indices(shape[0], *shape[2:], classes=shape[1])
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        function = functools.partial(DF.cross_entropy, target=target, **options)
        check_threads(function, [logits(*shape).requires_grad_()])


def test_saves_no_probabilities():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        x = logits(100, 50).requires_grad_()
        DF.cross_entropy(x, indices(100, classes=50))
    assert sum(t.numel() for t in saved if t.data_ptr() != x.data_ptr()) <= 3 * 100 + 1


ERRORS = [  # input, target, keyword arguments, exception, message
    (rand(2, 3), torch.tensor([0, 3]), {}, IndexError, "Target 3 "),
    (rand(2, 3), torch.tensor([-1, 0]), {}, IndexError, "Target -1 "),
    (rand(2, 3, 4), torch.full((2, 4), 7), {}, IndexError, "Target 7 "),
    (rand(3), torch.tensor(5), {}, IndexError, "Target 5 "),
    (rand(2, 3), torch.tensor([0, 1, 2]), {}, ValueError, "target"),
    (rand(2, 3, 4), torch.zeros(2, 5).long(), {}, RuntimeError, "target"),
    (rand(2, 3), torch.tensor([0, 1]), {"weight": rand(4)}, RuntimeError, "weight"),
    (rand(2, 3), torch.tensor([0, 1]), {"weight": rand(3, 1)}, RuntimeError, "weight"),
    (rand(2, 3), torch.tensor([0, 1]).int(), {}, RuntimeError, "target"),
    (rand(2, 3), torch.tensor([0, 1]), {"reduction": "average"}, ValueError, "average"),
]
CROSS_ENTROPY_ERRORS = [
    (rand(2, 3), torch.tensor([0, 1]), {"label_smoothing": 1.5}, RuntimeError, "label_smoothing"),
    (rand(2, 3), rand(2, 3), {"ignore_index": 1}, RuntimeError, "ignore_index"),
]


@pytest.mark.parametrize(
    "name, case",
    [(name, e) for name in ("cross_entropy", "nll_loss") for e in ERRORS]
    + [("cross_entropy", e) for e in CROSS_ENTROPY_ERRORS],
)
def test_errors(name, case, backend):
    x, target, options, exception, message = case
    if exception is IndexError and backend == "cuda":
        pytest.skip("a bad index traps, after which the process cannot use the GPU")
    if exception is IndexError and backend == "simt":
        exception, message = RuntimeError, "assert"
    with pytest.raises(case[3]):
        getattr(F, name)(x, target, **options)
    with pytest.raises(exception, match=message):
        getattr(DF, name)(x, target, **options)


@pytest.mark.parametrize(
    "arguments", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}]
)
def test_legacy_reduction(arguments):
    x, target = logits(20, 7), indices(20, classes=7)
    with pytest.warns(UserWarning, match="size_average and reduce"), kernel_ran("cross_entropy"):
        ours = DF.cross_entropy(x, target, **arguments)
    with pytest.warns(UserWarning):
        torch.testing.assert_close(ours, F.cross_entropy(x, target, **arguments))


@pytest.mark.parametrize("name", ["cross_entropy", "nll_loss"])
def test_compile(name):
    target = indices(20, classes=7)
    compiled = torch.compile(lambda x: getattr(DF, name)(x, target), fullgraph=True, backend="aot_eager")
    check(compiled, lambda x: getattr(F, name)(x, target), [logits(20, 7, name=name).requires_grad_()], op=name)
