import pytest
import torch

import dlkernels


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=["cpu", "simt", "cuda"],
        default="cpu",
        help="which kernels the tests run: the CPU's, the CUDA ones on the CPU (csrc/simt), or those on a GPU",
    )


def pytest_configure(config):
    if config.getoption("--backend") == "cuda":
        torch.set_default_device("cuda")  # before the modules of tests make tensors


@pytest.fixture(scope="session", autouse=True)
def backend(request):
    """The kernels under test, for the whole run."""
    backend = request.config.getoption("--backend")
    torch.backends.cudnn.deterministic = True  # gradcheck asks for the same results twice
    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default lets convolutions round float32 operands
    if backend == "simt":
        assert dlkernels._C.use_simt(True), "dlkernels was built without csrc/simt: set DLKERNELS_SIMT=ON to build"
    yield backend
    dlkernels._C.use_simt(False)


@pytest.fixture
def one_thread():
    """For tests on small tensors: where the cores are busy, PyTorch's threads wait long for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
