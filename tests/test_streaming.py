"""Outputs that bypass the cache (csrc/cpu/streaming.h) are the same, bit by bit, as those that do not. Tests cannot
afford tensors larger than the cache, so they call the cache small."""

import pytest
import torch
from util import DTYPES, check_same_bits, kernel_ran, rand

import dlkernels.functional as DF
from dlkernels import _C


def depthwise(x, size, **options):
    return DF.conv2d(x, rand(x.shape[1], 1, size, size, dtype=x.dtype), groups=x.shape[1], **options)


FUNCTIONS = {
    "relu": DF.relu,
    "gelu": DF.gelu,
    "sigmoid": DF.sigmoid,
    "batch_norm": lambda x: DF.batch_norm(x, None, None, training=True),
    "batch_norm eval": lambda x: DF.batch_norm(x, x.detach().mean((0, 2, 3)), x.detach().var((0, 2, 3))),
    "group_norm": lambda x: DF.group_norm(x, 1),
    "layer_norm": lambda x: DF.layer_norm(x, x.shape[-1:]),
    "layer_norm of images": lambda x: DF.layer_norm(x, x.shape[1:]),
    "softmax": lambda x: DF.softmax(x, 1),
    "softmax of rows": lambda x: DF.softmax(x, 3),
    "log_softmax": lambda x: DF.log_softmax(x, 1),
    "log_softmax of rows": lambda x: DF.log_softmax(x, 3),
    "batch_norm relu": lambda x: DF._batch_norm_then("relu", x, None, None, None, None, True, 0.1, 1e-5),
    "conv2d depthwise 3": lambda x: depthwise(x, 3, padding=1),
    "conv2d depthwise 3/2": lambda x: depthwise(x, 3, stride=2, padding=1),
    "conv2d depthwise 5": lambda x: depthwise(x, 5, padding=2),
    "conv2d depthwise 7": lambda x: depthwise(x, 7, padding=3),
    "conv2d depthwise 2": lambda x: depthwise(x, 2),
    "max_pool2d 2/2": lambda x: DF.max_pool2d(x, 2),
    "max_pool2d 2/3": lambda x: DF.max_pool2d(x, 2, 3, 1),
    "max_pool2d 2/3 d2": lambda x: DF.max_pool2d(x, 2, 3, 0, 2),
    "max_pool2d 3/2": lambda x: DF.max_pool2d(x, 3, 2, 1),
    "avg_pool2d 2/2": lambda x: DF.avg_pool2d(x, 2),
    "avg_pool2d 3/2": lambda x: DF.avg_pool2d(x, 3, 2, 1),
    "adaptive_avg_pool2d": lambda x: DF.adaptive_avg_pool2d(x, 1),
}


def seeded(function):
    def call(x):
        torch.manual_seed(0)
        return function(x, 0.25, training=True)

    return call


FUNCTIONS |= {"dropout": seeded(DF.dropout), "dropout2d": seeded(DF.dropout2d)}


@pytest.fixture
def any_cache():
    before = _C.last_level_cache()
    yield
    _C.set_last_level_cache(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "shape",
    [(3, 64, 16, 48), (2, 96, 5, 16), (2, 3, 7, 9), (2, 3, 16, 16), (2, 3, 16, 192), (1, 2, 4, 33024)],
    ids=["rows of whole vectors", "more channels", "ragged rows", "few channels", "long rows", "longest rows"],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_bits(name, shape, layout, dtype, any_cache):
    x = rand(*shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    with kernel_ran(name.split()[0]):
        check_same_bits(FUNCTIONS[name], [x], [2**40, 1], _C.set_last_level_cache)
