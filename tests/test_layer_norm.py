"""Layer and group normalisation."""

import pytest
import torch
import torch.nn.functional as F
from util import DTYPES, LAYOUTS, check, check_gradients, check_threads, rand

import dlkernels.functional as DF


def compare(name, x, over, affine=True, dys=None, **options):
    """`over`: normalized_shape or num_groups."""
    size = over if name == "layer_norm" else x.shape[1:2]
    weights = [rand(*size, dtype=x.dtype, seed=i).requires_grad_() for i in (1, 2)] if affine else [None, None]

    def call(library):
        return lambda x, weight, bias: getattr(library, name)(x, over, weight, bias, **options)

    roundings = 4 if x.dtype == torch.float32 else 32
    check(call(DF), call(F), [x, *weights], op=name, dys=dys, roundings=roundings)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [True, False])
def test_layouts(layout, affine, dtype):
    x = LAYOUTS[layout](rand(4, 6, 7, 9, dtype=dtype)).requires_grad_()
    for shape in ((9,), (7, 9), (6, 7, 9), (4, 6, 7, 9)):
        compare("layer_norm", x, shape, affine)
    for groups in (1, 2, 6):
        compare("group_norm", x, groups, affine)


def test_lengths():
    for n in [*range(1, 40), 63, 64, 65, 2047, 2049, 5000]:
        compare("layer_norm", rand(9, n, seed=n).requires_grad_(), (n,))
        compare("group_norm", rand(3, 4, n, seed=n).requires_grad_(), 2)
    for n in (31, 32, 33, 200):
        compare("layer_norm", rand(n, 70).requires_grad_(), (70,))


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3), (2, 8, 3, 4, 5), (1, 8, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_ranks(shape, groups):
    if shape[2:] or groups < 8:
        compare("group_norm", rand(*shape).requires_grad_(), groups)


@pytest.mark.parametrize("channels, groups", [(6, 2), (16, 16), (40, 4), (96, 1)])
@pytest.mark.parametrize("mean", [0, 1000])
def test_channels_last_blocks(channels, groups, mean):
    """Images of several blocks of pixels, the last one short; groups of less than a vector and of more."""
    for size in ((1, 1), (11, 12), (16, 16), (19, 27)):
        x = (rand(3, channels, *size) + mean).contiguous(memory_format=torch.channels_last).requires_grad_()
        if channels // groups * size[0] > 1:
            compare("group_norm", x, groups)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_channels_last_special_values(special):
    """A special value spoils its group and no other."""
    x = rand(2, 6, 16, 17).contiguous(memory_format=torch.channels_last)
    x[1, 3, 15, 16] = special
    spoiled = DF.group_norm(x, 3).isnan().flatten(2).all(-1)
    torch.testing.assert_close(spoiled, torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool())
    torch.testing.assert_close(DF.group_norm(x, 3), F.group_norm(x, 3), equal_nan=True)


def test_empty():
    compare("layer_norm", rand(0, 7).requires_grad_(), (7,))
    compare("group_norm", rand(0, 6, 5).requires_grad_(), 2)


@pytest.mark.parametrize("name, over", [("layer_norm", (600,)), ("group_norm", 3)])
def test_mean_far_from_zero(name, over):
    compare(name, (rand(20, 6, 600) + 1000).requires_grad_(), over)
    compare(name, rand(20, 6, 600).requires_grad_(), over, eps=0.1)


@pytest.mark.parametrize("columns", [100, 600, 5000])
def test_unlike_beginning(columns):
    """Sums are about a number that is found among the first."""
    x = rand(20, columns)
    x[:, : columns // 20] += 1000
    compare("layer_norm", x.requires_grad_(), (columns,))


@pytest.mark.parametrize("name, over", [("layer_norm", (30,)), ("group_norm", 2)])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf(name, over, special):
    x = rand(3, 4, 30)
    x[1, 2, 7] = special
    compare(name, x.requires_grad_(), over)


@pytest.mark.parametrize("name, over, size", [("layer_norm", (2, 3), (2, 3)), ("group_norm", 2, (4,))])
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(name, over, size, affine):
    x = rand(3, 4, 2, 3, dtype=torch.float64).requires_grad_()
    weights = [rand(*size, dtype=torch.float64, seed=i).requires_grad_() for i in (1, 2)] if affine else []
    check_gradients(lambda x, *weights: getattr(DF, name)(x, over, *weights), [x, *weights])


@pytest.mark.parametrize("name, over", [("layer_norm", (30,)), ("group_norm", 2)])
def test_expanded_output_gradient(name, over):
    compare(name, rand(3, 4, 30).requires_grad_(), over, dys=[rand(3, 4, 1).expand(3, 4, 30)])


def test_threads():
    weight, bias = rand(70, seed=1).requires_grad_(), rand(70, seed=2).requires_grad_()
    check_threads(lambda x, w, b: DF.layer_norm(x, (70,), w, b), [rand(2000, 70).requires_grad_(), weight, bias])
    check_threads(lambda x, w, b: DF.group_norm(x, 7, w, b), [rand(30, 70, 50).requires_grad_(), weight, bias])
    for channels in (70, 14):
        image = rand(5, channels, 60, 31).contiguous(memory_format=torch.channels_last)
        parameters = [p.detach()[:channels].clone().requires_grad_() for p in (weight, bias)]
        check_threads(lambda x, w, b: DF.group_norm(x, 7, w, b), [image.requires_grad_(), *parameters])


@pytest.mark.parametrize(
    "name, shape, arguments, exception, message",
    [
        ("layer_norm", (4, 6), ((5,),), RuntimeError, "normalized_shape"),
        ("layer_norm", (6,), ((4, 6),), RuntimeError, "normalized_shape"),
        ("layer_norm", (4, 6), ((6,), rand(5)), RuntimeError, "weight"),
        ("layer_norm", (4, 6), ((6,), None, rand(5)), RuntimeError, "bias"),
        ("group_norm", (4,), (2,), RuntimeError, "input"),
        ("group_norm", (4, 6), (4,), RuntimeError, "num_groups"),
        ("group_norm", (4, 6), (2, rand(5)), RuntimeError, "weight"),
        ("group_norm", (4, 6), (2, None, rand(5)), RuntimeError, "bias"),
        ("group_norm", (1, 2), (2,), ValueError, "Expected more than 1"),
    ],
)
def test_errors(name, shape, arguments, exception, message):
    with pytest.raises(exception):
        getattr(F, name)(rand(*shape), *arguments)
    with pytest.raises(exception, match=message):
        getattr(DF, name)(rand(*shape), *arguments)


@pytest.mark.parametrize("name, over", [("layer_norm", (30,)), ("group_norm", 2)])
def test_compile(name, over):
    compiled = torch.compile(lambda x: getattr(DF, name)(x, over), fullgraph=True, backend="aot_eager")
    check(compiled, lambda x: getattr(F, name)(x, over), [rand(3, 4, 30).requires_grad_()], op=name)
