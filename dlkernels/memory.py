"""The memory of tensors on the CPU: outputs of dlkernels come from a cache of large blocks (csrc/memory)."""

import operator
import os
import re

from dlkernels import _C

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}  # as powers of two
_MOST = 2**63 - 1


def memory_stats():
    """The caching allocator in numbers, as a dict. Tensors of less than 256 KiB do not pass through it.

    Bytes, of blocks as they are, which is up to 12.5 % more than the tensors in them: `allocated` (in use), `cached`
    (idle: kept for the next tensor of that size), `peak` (the most allocated at a time), `limit` (of `cached`).
    Numbers since the start: `hits` (blocks that came from the cache), `misses` (blocks that came from the system),
    `released` (blocks that went back to the system).
    """
    return _C.memory_stats()


def empty_cache():
    """Gives the memory of all idle blocks back to the system."""
    _C.empty_cache()


def set_cache_limit(limit):
    """Lets at most `limit` bytes (an int) be idle; what is idle beyond goes back to the system, the longest idle first.

    0 switches the cache off: tensors made from then on come from PyTorch's allocator. The default is a quarter of the
    memory of the machine or of the process's cgroup; the environment variable DLKERNELS_CACHE_LIMIT sets another one
    at import ("0", "512M", "2G"; in powers of 1024).
    """
    try:
        limit = operator.index(limit)
    except TypeError:
        raise TypeError(f"set_cache_limit: limit must be an int (bytes), got {type(limit).__name__}") from None
    if limit < 0:
        raise ValueError(f"set_cache_limit: limit must be 0 (off) or more bytes, got {limit}")
    _C.set_cache_limit(min(limit, _MOST))


def use_caching_allocator():
    """Makes all of PyTorch's CPU tensors come from the cache, not only the outputs of dlkernels.

    Tensors made before stay as they are and are freed as before. There is no way back within the process: PyTorch frees
    some memory (buffers of oneDNN) with the allocator that is installed by then, and its own cannot free ours.
    `set_cache_limit(0)` switches the cache off nevertheless. Call it at the start, while no other thread runs PyTorch.
    RuntimeError if another library has installed an allocator that claims precedence.
    """
    _C.use_caching_allocator()


def _limit_from_environment():
    text = os.environ.get("DLKERNELS_CACHE_LIMIT")
    if text is None:
        return
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", text.strip().upper())
    if match is None:
        raise ValueError(f"DLKERNELS_CACHE_LIMIT must be a number of bytes such as 0, 512M or 2G, got {text!r}")
    set_cache_limit(int(match[1]) << _UNITS[match[2]])


_limit_from_environment()
