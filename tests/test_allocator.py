"""The caching allocator as PyTorch sees it: where our tensors come from, their storages, forks, and its controls."""

import copy
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlkernels
import dlkernels.functional as DF

KB, MB = 2**10, 2**20
BIG = 512 * KB  # elements of float32: 2 MB


@pytest.fixture(autouse=True)
def empty_cache(backend):
    """Each test starts with nothing idle, and leaves the limit as it was."""
    if backend == "cuda":
        pytest.skip("CUDA tensors come from PyTorch's allocator")
    limit = dlkernels.memory_stats()["limit"]
    dlkernels.empty_cache()
    yield
    dlkernels.set_cache_limit(limit)


def change(before):
    """What memory_stats() has more of than `before`."""
    return {name: value - before[name] for name, value in dlkernels.memory_stats().items()}


def output(elements=BIG):
    """A tensor of ours: its values are 0 and 1 in turns."""
    return DF.relu(torch.tensor([-1.0, 1.0]).repeat(elements // 2))


def expected(elements=BIG):
    return torch.tensor([0.0, 1.0]).repeat(elements // 2)


def run(code, **environment):
    """`code` in a process of its own, which must end well; what it printed."""
    path = str(Path(dlkernels.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ---- Outputs and workspaces


def test_an_output_is_cached_and_reused():
    before = dlkernels.memory_stats()
    y = output()
    address = y.data_ptr()
    assert change(before) | {"peak": 0} == dict(
        allocated=2 * MB, cached=0, peak=0, limit=0, hits=0, misses=1, released=0
    )
    del y
    assert change(before)["allocated"] == 0 and change(before)["cached"] == 2 * MB
    y = output()
    assert y.data_ptr() == address and torch.equal(y, expected())
    assert change(before)["hits"] == 1 and change(before)["cached"] == 0
    assert dlkernels.memory_stats()["peak"] >= 2 * MB


def test_gradients_come_from_it():
    x = torch.randn(4, 16, 128, 128, requires_grad=True)  # 4 MB
    before = dlkernels.memory_stats()
    y = DF.conv2d(x, torch.randn(16, 16, 3, 3), padding=1)
    y.backward(torch.ones_like(y))
    assert change(before)["allocated"] == 8 * MB  # y and x.grad


def test_workspaces_come_from_it(backend):
    if backend != "cpu":
        pytest.skip("the CUDA kernels pack no weights")
    before = dlkernels.memory_stats()
    x = torch.randn(1, 256, 4, 4).contiguous(memory_format=torch.channels_last)
    DF.conv2d(x, torch.randn(256, 256, 3, 3))
    assert change(before)["allocated"] == 0 and change(before)["cached"] >= 256 * 256 * 9 * 4  # the packed weights


def test_small_tensors_pass_by():
    before = dlkernels.memory_stats()
    y = output(63 * KB)
    assert change(before)["misses"] == 0
    z = output(64 * KB)  # 256 KB
    assert change(before)["misses"] == 1
    assert y.data_ptr() % 64 == z.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(64, 64, 8, 8).to(memory_format=torch.channels_last),
        torch.randn(64, 64, 64).permute(2, 0, 1),
        torch.randn(64, 64, 128)[:, :, ::2],
        torch.randn(1, 64, 1, 64, 64).as_strided((1, 64, 1, 64, 64), (7, 4096, 3, 64, 1)),
        torch.randn(64, 1, 64, 1).expand(64, 2, 64, 64),
        torch.randn(0, 3),
        torch.tensor(1.0),
    ],
    ids=["channels_last", "permuted", "strided", "size 1", "expanded", "empty", "scalar"],
)
def test_strides_are_those_of_empty_like(x):
    y = DF.relu(x)
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.equal(y, torch.relu(x))


def test_meta_tensors_allocate_nothing():
    before = dlkernels.memory_stats()
    y = DF.relu(torch.empty(BIG, device="meta"))
    assert y.is_meta and change(before)["misses"] == 0


def test_the_system_has_no_memory():
    """The error is PyTorch's, which programs look for."""
    x = torch.ones(1).expand(2**50)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        DF.relu(x)


# ---- Storages


def test_resize():
    y = output()
    y.resize_(4 * BIG)
    assert torch.equal(y[:BIG], expected())
    y.untyped_storage().resize_(0)
    assert y.untyped_storage().nbytes() == 0
    y.untyped_storage().resize_(4 * 4 * BIG)
    y.fill_(3)
    assert y.sum() == 3 * 4 * BIG


def test_set_and_views_keep_the_block():
    before = dlkernels.memory_stats()
    y = output()
    view = torch.empty(0).set_(y.untyped_storage(), 0, (BIG,))
    part = y[BIG // 2 :]
    del y
    assert change(before)["allocated"] == 2 * MB
    assert torch.equal(view, expected()) and torch.equal(part, expected()[BIG // 2 :])
    del view, part
    assert change(before)["allocated"] == 0


@pytest.mark.parametrize("how", ["torch.save", "pickle", "clone", "numpy", "deepcopy"])
def test_copies(how):
    y = output()
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(y, file)
        file.seek(0)
        z = torch.load(file)
    elif how == "pickle":
        z = pickle.loads(pickle.dumps(y))
    elif how == "numpy":
        z = torch.from_numpy(y.numpy().copy())
    elif how == "deepcopy":
        z = copy.deepcopy(y)
    else:
        z = y.clone()
    y.zero_()
    assert torch.equal(z, expected())


def test_numpy_keeps_the_block():
    array = output().numpy()
    output()  # would take the block if it were idle
    assert (array == expected().numpy()).all()


def test_share_memory():
    before = dlkernels.memory_stats()
    y = output().share_memory_()
    assert y.is_shared() and torch.equal(y, expected())
    assert change(before)["allocated"] == 0  # the values have moved to shared memory


def test_pinned_memory():
    """Pinning copies into memory of another allocator, or raises what it raises for any tensor."""
    y = output()
    assert not y.is_pinned()
    try:
        torch.ones(1).pin_memory()
    except RuntimeError as error:
        with pytest.raises(type(error)):
            y.pin_memory()
    else:
        assert torch.equal(y.pin_memory(), expected())


class Outputs(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        assert index > 0 or dlkernels.memory_stats()["cached"] == 0  # a fork starts with an empty cache
        return output() * index


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_data_loader_workers():
    kept = output()
    output()  # idle in the parent
    loader = torch.utils.data.DataLoader(Outputs(), num_workers=2, multiprocessing_context="fork")
    for index, batch in enumerate(loader):
        assert torch.equal(batch[0], expected() * index)
    assert torch.equal(kept, expected())


def test_profiler_sees_our_tensors():
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = output(8 * BIG)
        del y
    sizes = [event.self_cpu_memory_usage for event in profile.events() if event.name == "dlkernels::activation"]
    assert sizes == [8 * 2 * MB]


# ---- Limit


def test_limit():
    before = dlkernels.memory_stats()
    dlkernels.set_cache_limit(3 * MB)
    small, large = output(), output(2 * BIG)
    del small, large
    held = change(before)
    assert held["cached"] == 2 * MB and held["released"] == 1  # the large one is above the limit
    dlkernels.set_cache_limit(1)
    assert dlkernels.memory_stats()["cached"] == 0


def test_limit_0_switches_off():
    y = output()
    before = dlkernels.memory_stats()
    dlkernels.set_cache_limit(0)
    z = output()
    assert change(before)["misses"] == change(before)["hits"] == 0
    del y, z
    assert change(before)["cached"] == 0 and change(before)["allocated"] == -2 * MB


def test_empty_cache():
    output()
    before = dlkernels.memory_stats()
    dlkernels.empty_cache()
    assert change(before)["cached"] == -before["cached"] < 0 and change(before)["released"] == 1


def test_limit_that_is_none():
    with pytest.raises(TypeError, match="limit must be an int .bytes., got float"):
        dlkernels.set_cache_limit(1e9)
    with pytest.raises(ValueError, match="limit must be 0 .off. or more bytes, got -1"):
        dlkernels.set_cache_limit(-1)
    dlkernels.set_cache_limit(10**30)
    assert dlkernels.memory_stats()["limit"] == 2**63 - 1


@pytest.mark.parametrize("text, limit", [("0", 0), ("1000", 1000), ("512M", 512 * MB), (" 2g", 2**31)])
def test_limit_of_the_environment(monkeypatch, text, limit):
    monkeypatch.setenv("DLKERNELS_CACHE_LIMIT", text)
    dlkernels.memory._limit_from_environment()
    assert dlkernels.memory_stats()["limit"] == limit


@pytest.mark.parametrize("text", ["", "1.5G", "-1", "lots", "5X", "2GB2"])
def test_wrong_limit_of_the_environment(monkeypatch, text):
    monkeypatch.setenv("DLKERNELS_CACHE_LIMIT", text)
    with pytest.raises(ValueError) as caught:
        dlkernels.memory._limit_from_environment()
    assert str(caught.value) == f"DLKERNELS_CACHE_LIMIT must be a number of bytes such as 0, 512M or 2G, got {text!r}"


PRINT_LIMIT = "import dlkernels; print(dlkernels.memory_stats()['limit'])"


def test_environment_at_import():
    assert int(run(PRINT_LIMIT, DLKERNELS_CACHE_LIMIT="7K")) == 7 * KB
    code = f"try:\n {PRINT_LIMIT}\nexcept ValueError as error: print(error)"
    assert "got 'lots'" in run(code, DLKERNELS_CACHE_LIMIT="lots")


def test_default_limit():
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if "DLKERNELS_CACHE_LIMIT" in os.environ:
        pytest.skip("the environment sets another")
    assert 0 < int(run(PRINT_LIMIT)) <= physical // 4


# ---- All of PyTorch's tensors


def test_all_tensors():
    """Tensors of before and after, PyTorch's own ops, oneDNN (which frees by the allocator that is installed by then),
    raw memory, forks, and what is alive at exit."""
    printed = run(
        """if True:
        import os, torch, dlkernels
        torch.set_num_threads(1)  # OpenMP's threads do not live on in a fork
        conv = torch.nn.Conv2d(16, 16, 3, padding=1)
        x = torch.randn(4, 16, 128, 128, requires_grad=True)
        expected = conv(x)
        before = dlkernels.memory_stats()
        assert before["misses"] == 0
        dlkernels.use_caching_allocator()
        dlkernels.use_caching_allocator()
        y = conv(x)
        assert torch.equal(y, expected)
        y.sum().backward()
        assert dlkernels.memory_stats()["allocated"] >= 8 * 2**20
        del y, expected
        ones = torch.ones(2**20)
        assert dlkernels.memory_stats()["allocated"] >= 8 * 2**20
        x.data.resize_(2**21)
        if os.fork() == 0:
            os._exit(int((ones + ones).sum().item() != 2**21))
        assert os.wait()[1] == 0
        print("hits", dlkernels.memory_stats()["hits"])
        """
    )
    assert int(printed.split()[1]) > 0
