import pytest
import torch


@pytest.fixture
def one_thread():
    """For tests on small tensors: where the cores are busy, PyTorch's threads wait long for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
