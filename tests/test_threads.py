"""Every function gives the same outputs and gradients, bit by bit, for 1 to 4 threads, at sizes that threads share."""

import contextlib
import threading
import time
from pathlib import Path

import pytest
import torch
from cases import FUNCTIONS, functions_of
from util import DTYPES, check_threads, rand

import dlkernels.functional

N = 140  # samples: every case has then more than four times the elements or multiplications that one thread takes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FUNCTIONS)
def test_bitwise_equal(case, dtype):
    check_threads(FUNCTIONS[case].bind(functions_of(case)[0]), FUNCTIONS[case].inputs(N, dtype))


@pytest.mark.parametrize("groups", [1, 65])
def test_group_norm_with_a_last_vector_of_one(groups):
    """Where two copies of a loop once contracted different products and sums."""
    x = rand(2, 65, 13, 40, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    check_threads(lambda x: dlkernels.functional.group_norm(x, groups), [x])


def others_seconds():
    """Processor time of each of this process's threads but the calling one, once they rest (OpenMP's spin a while).
    From Linux's count for each: the process's time less the calling thread's, read one after the other, is off by more
    than the work of a thread that does not spin."""
    time.sleep(0.02)
    own, seconds = str(threading.get_native_id()), {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            if task.name != own:
                seconds[task.name] = int((task / "schedstat").read_text().split()[0]) * 1e-9
    return seconds


# A view; one dot product, one task; one element read per sample.
NOT_SHARED = ["flatten", "matmul vectors", "nll_loss", "nll_loss weight"]


@pytest.mark.parametrize("case", [case for case in FUNCTIONS if case not in NOT_SHARED])
def test_work_is_shared(case):
    """The sizes above do make a second thread work, if not each time on a busy machine: it may wake too late."""
    function, inputs = FUNCTIONS[case].bind(functions_of(case)[0]), FUNCTIONS[case].inputs(N, torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with torch.no_grad():
            function(*inputs)

            def is_shared():
                start = others_seconds()
                function(*inputs)
                return sum(seconds - start.get(task, 0) for task, seconds in others_seconds().items()) > 5e-6

            assert any(is_shared() for _ in range(10))
    finally:
        torch.set_num_threads(before)
