"""What a computation keeps for its backward pass, and how much memory it takes at its peak."""

import ctypes
import gc
import re
from pathlib import Path

import torch

import dlkernels

_CLEAR_PEAK = "5"  # written to /proc/self/clear_refs: VmHWM starts again from VmRSS (proc(5))


def bytes_saved(step, kept_anyway=()):
    """Bytes of the distinct storages that autograd saves during step(), without those of the tensors kept anyway."""
    known = {x.untyped_storage().data_ptr() for x in kept_anyway}
    saved = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step()
    return sum(saved.values())


def _status(field):
    return int(re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M).group(1)) * 1024


def release_freed_memory():
    """Gives what is free but cached back to the system: Python's garbage, our allocator's cache, malloc's heap."""
    gc.collect()
    dlkernels.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def peak(step):
    """By how many bytes resident memory rises at most during step(); None where the system does not tell.

    Exact to some hundred KB. Scratch memory that libraries keep from an earlier call is not counted."""
    try:
        release_freed_memory()
        Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
        before = _status("VmRSS")
        step()
        return max(_status("VmHWM") - before, 0)
    except (OSError, AttributeError):
        return None
