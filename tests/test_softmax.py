"""Softmax and log-softmax: values and gradients over every dimension, special values, errors."""

import functools

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, rand

import dlkernels.functional as DF

NAMES = ["softmax", "log_softmax"]
INF, NAN = float("inf"), float("nan")


def compare(name, x, dim, **options):
    ours, theirs = (functools.partial(getattr(library, name), dim=dim) for library in (DF, F))
    check(ours, theirs, [x], op=name, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, -2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(name, dim, layout, dtype):
    compare(name, LAYOUTS[layout](3 * rand(3, 5, 7, 9, dtype=dtype)).requires_grad_(), dim)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [1, 3, 100])
def test_row_lengths(name, columns):
    for n in [*range(0, 40), 63, 64, 65, 1000]:
        compare(name, 3 * rand(20, n, columns, seed=n).requires_grad_(), 1)


@pytest.mark.parametrize("name", NAMES)
def test_column_counts(name):
    for n in [*range(0, 40), 63, 64, 65, 127, 128, 129, 511, 512, 513, 1100]:
        compare(name, 3 * rand(8, 5, n, seed=n).requires_grad_(), 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [65, 100, 256, 600, 2000])  # ever narrower tiles
def test_several_tiles(name, n):
    compare(name, 3 * rand(2, n, 530, seed=n).requires_grad_(), 1)


@pytest.mark.parametrize("name", NAMES)
def test_other_ranks(name):
    compare(name, rand().requires_grad_(), 0)
    compare(name, rand().requires_grad_(), -1)
    compare(name, rand(13).requires_grad_(), 0)
    compare(name, rand(2, 3, 4, 5, 6, 3).requires_grad_(), 3)
    compare(name, rand(0, 4).requires_grad_(), 1)
    compare(name, rand(4, 0).requires_grad_(), 0)


@pytest.mark.parametrize("name", NAMES)
def test_offset_and_extreme_inputs(name):
    compare(name, (rand(4, 50) + 1000).requires_grad_(), 1)
    compare(name, (100 * rand(4, 50)).requires_grad_(), 1)
    compare(name, torch.tensor([[3.4e38, -3.4e38, 0.0], [-3.4e38, -3.4e38, -3.4e38]]).requires_grad_(), 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("columns", [40, 300])
@pytest.mark.parametrize("dim", [0, 1])
def test_nan_and_inf(name, dim, columns):
    x = 3 * rand(40, columns)
    for i, special in enumerate([NAN, INF, -INF]):
        x[10 * i, 10 * i + 1] = special
    x[35, :] = x[:, 35] = -INF
    compare(name, x.requires_grad_(), dim)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_gradcheck(name, dim):
    x = rand(3, 4, 5, dtype=torch.float64).requires_grad_()
    check_gradients(lambda x: getattr(DF, name)(x, dim), [x])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, 1])
def test_expanded_output_gradient(name, dim):
    compare(name, rand(60, 20).requires_grad_(), dim, dys=[rand(60, 1).expand(60, 20)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_threads(name, dim):
    check_threads(lambda x: getattr(DF, name)(x, dim), [rand(50, 33, 70).requires_grad_()])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows, columns", [(61, 300), (3, 1000), (1, 5000), (5, 40000)])
def test_long_rows(name, rows, columns):
    compare(name, 3 * rand(rows, columns).requires_grad_(), 1)
    with kernel_ran(name):
        check_threads(lambda x: getattr(DF, name)(x, 1), [rand(rows, columns).requires_grad_()])


@pytest.mark.parametrize("name", NAMES)
def test_dtype_converts_first(name):
    x = torch.arange(12).view(3, 4)
    with kernel_ran(name):
        y = getattr(DF, name)(x, 1, dtype=torch.float32)
    torch.testing.assert_close(y, getattr(F, name)(x, 1, dtype=torch.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", range(5))
def test_implicit_dim(name, rank):
    x = rand(*[3] * rank)
    with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}") as warning:
        y = getattr(DF, name)(x)
    assert warning[0].filename == __file__
    with pytest.warns(UserWarning, match=f"Implicit dimension choice for {name}"):
        torch.testing.assert_close(y, getattr(F, name)(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape, dim", [((2, 3), 2), ((2, 3), -3), ((), 1)])
def test_bad_dim(name, shape, dim):
    with pytest.raises(IndexError):
        getattr(F, name)(rand(*shape), dim)
    with pytest.raises(IndexError, match=f"dim .*got {dim} "):
        getattr(DF, name)(rand(*shape), dim)


@pytest.mark.parametrize("name", NAMES)
def test_compile(name):
    compiled = torch.compile(lambda x: getattr(DF, name)(x, 1), fullgraph=True, backend="aot_eager")
    check(compiled, lambda x: getattr(F, name)(x, 1), [rand(3, 5, 7).requires_grad_()], op=name)
