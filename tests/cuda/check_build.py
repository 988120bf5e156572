"""The extension built with CUDA kernels, on a machine without a GPU: `make test-cuda-build`."""

import pytest
import torch

import dlkernels
from dlkernels import _build_info

OPS = sorted(
    name
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("dlkernels::") and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
)


def test_is_a_cuda_build():
    assert _build_info.CUDA_ARCHITECTURES, "built without CUDA kernels"
    assert _build_info.CUDA_ARCHITECTURES.split(";")[0].removesuffix("-real") in dlkernels.info()["CUDA kernels"]
    assert len(OPS) >= 25


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_cuda_registration(op):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_call_without_a_gpu_says_so():
    x = torch.randn(3, 4)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match="need an NVIDIA GPU, and none is visible"):
        torch.ops.dlkernels.softmax.default.redispatch(key, x, 1, False)
    with pytest.raises(RuntimeError, match="need an NVIDIA GPU, and none is visible"):
        torch.ops.dlkernels.activation_.default.redispatch(key, x, 0, 0.0, 0.0)
    # What a user meets first is torch's own message.
    with pytest.raises((RuntimeError, AssertionError), match="NVIDIA|CUDA"):
        dlkernels.functional.relu(torch.randn(3, device="cuda"))


def test_cpu_tensors_run_the_cpu_kernels():
    dlkernels.reset_counts()
    x = torch.randn(5, 7)
    torch.testing.assert_close(dlkernels.functional.softmax(x, 1), torch.softmax(x, 1))
    assert dlkernels.counts()["softmax"] == {"kernel": 1, "fallback": 0}
