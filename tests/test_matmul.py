"""matmul and linear: transpositions, batches, broadcasting, sizes around the blocks of the kernel."""

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, kernel_ran, rand

import dlkernels.functional as DF

# M, N, K: around the vector widths (4 to 16), the register tiles (6 x 16 to 14 x 32) and the block of K (128, 256).
SIZES = [
    *[(m, n, k) for m in (1, 5, 15) for n in (1, 17, 33) for k in (1, 8, 257)],
    (64, 64, 64),
    (29, 1100, 130),
    (200, 65, 700),
    (101, 290, 600),
    (1, 300, 400),
    (300, 1, 400),
]


def matrix(rows, columns, transposed, **kwargs):
    return rand(columns, rows, **kwargs).t() if transposed else rand(rows, columns, **kwargs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_transposed", [False, True])
@pytest.mark.parametrize("b_transposed", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, a_transposed, b_transposed, dtype):
    m, n, k = size
    a = matrix(m, k, a_transposed, dtype=dtype, seed=1).requires_grad_()
    b = matrix(k, n, b_transposed, dtype=dtype, seed=2).requires_grad_()
    # Sums of length K in another order than PyTorch's: their rounding errors grow like its square root.
    check(DF.matmul, torch.matmul, [a, b], op="matmul", roundings=4 + max(m, n, k) ** 0.5)


SHAPES = [
    ((3,), (3,)),
    ((4, 3), (3,)),
    ((3,), (3, 4)),
    ((2, 4, 3), (3, 5)),
    ((2, 4, 3), (3,)),
    ((3,), (2, 3, 5)),
    ((4, 3), (2, 3, 5)),
    ((2, 1, 4, 3), (5, 3, 2)),
    ((4, 4, 3), (4, 3, 5)),
    ((2, 3, 4, 3), (2, 3, 3, 5)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((0, 4, 3), (0, 3, 2)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting(shapes):
    inputs = [rand(*shape, dtype=torch.float64, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    check(DF.matmul, torch.matmul, inputs, op="matmul", strides=False)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_gradcheck(shapes):
    inputs = [rand(*shape, dtype=torch.float64, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    check_gradients(DF.matmul, inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(layout, dtype):
    a = LAYOUTS[layout](rand(3, 20, 17, dtype=dtype)).requires_grad_()
    b = LAYOUTS[layout](rand(3, 17, 35, dtype=dtype, seed=1)).requires_grad_()
    check(DF.matmul, torch.matmul, [a, b], op="matmul", strides=False)


def test_expanded_operands_and_gradients():
    a = rand(5, 1, dtype=torch.float32).expand(5, 9).requires_grad_()
    b = rand(1, 9, 7).expand(4, 9, 7).requires_grad_()
    dy = rand(1, 1, 1).expand(4, 5, 7)
    check(DF.matmul, torch.matmul, [a, b], op="matmul", dys=[dy])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (33, 7), (2, 3, 40), (0, 7), (130, 300)], ids=str)
def test_linear(shape, bias, dtype):
    inputs = [rand(*shape, dtype=dtype), rand(37, shape[-1], dtype=dtype, seed=1)]
    if bias:
        inputs.append(rand(37, dtype=dtype, seed=2))
    check(DF.linear, F.linear, [x.requires_grad_() for x in inputs], op="linear", roundings=16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(33, 7), (2, 35, 1), (67, 1024)], ids=str)
def test_linear_of_few_outputs(shape, outputs, bias, dtype, backend):
    """Dot products, in groups of outputs and of rows."""
    if backend == "simt":
        pytest.skip("for an algorithm of the CPU's kernels")
    inputs = [rand(*shape, dtype=dtype), rand(outputs, shape[-1], dtype=dtype, seed=1)]
    if bias:
        inputs.append(rand(outputs, dtype=dtype, seed=2))
    check(DF.linear, F.linear, [x.requires_grad_() for x in inputs], op="linear", roundings=24)


@pytest.mark.parametrize("inputs, outputs", [(65, 3), (2, 60)])
def test_threads_of_few_columns(inputs, outputs):
    shapes = (1001, inputs), (outputs, inputs), (outputs,)
    with kernel_ran("linear"):
        check_threads(DF.linear, [rand(*shape, dtype=torch.float32).requires_grad_() for shape in shapes])


@pytest.mark.parametrize(
    "a, b",
    [((20, 1100), (1100, 28)), ((20, 300), (300, 1024)), ((300, 2), (2, 64)), ((5, 20, 30), (5, 30, 3))],
    ids=["last_vectors_overlap", "rows_of_a_page", "two_terms", "batch_of_few_columns"],
)
def test_algorithms_of_few_rows_or_columns(a, b):
    a, b = rand(*a, dtype=torch.float32), rand(*b, dtype=torch.float32, seed=1)
    if b.dim() == 3:  # columns contiguous: dot products
        b = b.transpose(1, 2).contiguous().transpose(1, 2)
    check(DF.matmul, torch.matmul, [a.requires_grad_(), b.requires_grad_()], op="matmul", roundings=40)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_linear_gradients_of_some(wanted):
    inputs = [rand(6, 5), rand(4, 5, seed=1), rand(4, seed=2)]
    check(DF.linear, F.linear, [x.requires_grad_(w) for x, w in zip(inputs, wanted)], op="linear")


def test_linear_gradcheck():
    shapes = ((2, 3, 5), (4, 5), (4,))
    check_gradients(DF.linear, [rand(*s, dtype=torch.float64, seed=i).requires_grad_() for i, s in enumerate(shapes)])


def test_nan_and_inf_stay_where_they_are():
    a, b = rand(20, 40), rand(40, 50, seed=1)
    a[3, 7] = float("nan")
    b[8, 45] = float("inf")
    y = DF.matmul(a, b)
    assert torch.equal(y.isnan().any(1), torch.arange(20) == 3)
    assert torch.equal(torch.isinf(y).any(0), torch.arange(50) == 45)


@pytest.mark.parametrize(
    "shapes", [((70, 300), (300, 90)), ((40, 9, 30), (40, 30, 9)), ((3, 300), (300, 2000))], ids=str
)
def test_threads(shapes):
    check_threads(DF.matmul, [rand(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: DF.matmul(rand(2, 3), rand(4, 5)), "inner dimensions"),
        (lambda: DF.matmul(rand(2, 4, 3), rand(3, 3, 5)), "must match|broadcast"),
        (lambda: DF.linear(rand(2, 3), rand(5, 4)), r"in_features = 4, got input of shape \[2, 3\]"),
        (lambda: DF.linear(rand(2, 3), rand(5, 3), rand(4)), r"bias must have shape .*5.*got \[4\]"),
        (lambda: DF.matmul(rand(2, 3), rand(3, 2, dtype=torch.float64)), "dtype"),
    ],
)
def test_errors(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


def test_integers_go_to_pytorch(backend):
    if backend == "cuda":
        pytest.skip("PyTorch has no integer matmul on CUDA")
    a = torch.arange(6).reshape(2, 3)
    assert torch.equal(DF.matmul(a, a.t()), a @ a.t())
    with pytest.raises(AssertionError, match="did not run"), kernel_ran("matmul"):
        DF.matmul(a, a.t())


def test_compiled():
    x, w, b = rand(6, 5).requires_grad_(), rand(4, 5, seed=1).requires_grad_(), rand(4, seed=2).requires_grad_()

    def function(x, w, b):
        return DF.matmul(DF.linear(x, w, b), w).sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for expected, actual in zip(
        torch.autograd.grad(function(x, w, b), [x, w, b]), torch.autograd.grad(compiled(x, w, b), [x, w, b])
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.parametrize("m, n, k", [(350, 64, 1024), (150, 64, 1024), (2048, 512, 1024), (34, 4128, 1024)])
def test_last_rectangle_needs_no_more_memory(m, n, k, threads):
    """Rectangles of C differ in size, and the smaller ones are cut into larger blocks."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        a, b = rand(m, k), rand(k, n)
        with kernel_ran("matmul"):
            c = DF.matmul(a, b)
        torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-3)
    finally:
        torch.set_num_threads(before)
