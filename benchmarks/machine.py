"""The machine that benchmarks ran on: what it is, and its two ceilings, measured.

The FMA peak comes from a loop of independent multiply-adds in registers, the copy bandwidth from y = max(x, 0) over
arrays from 16 KB to 128 MB (bytes read + written, the better of ordinary and non-temporal stores). Both are in
roofline.cpp, compiled for this processor, once, into build/benchmarks.
"""

import ctypes
import hashlib
import math
import os
import platform
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import dlkernels

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
ARRAY_BYTES = [2**exponent for exponent in range(14, 28, 2)] + [2**27]
SECONDS = 0.01  # one measurement; the best of several counts, since a ceiling is what can be reached


@dataclass
class Roofline:
    """What `threads` cores can do at most: floating-point operations and bytes per second."""

    threads: int
    flops: float
    copy: list  # of (bytes read and written, bytes per second), by rising bytes

    def bandwidth(self, size):
        """Of a copy that reads and writes `size` bytes in all: between two measured sizes, interpolated."""
        points = [(math.log(b), speed) for b, speed in self.copy]
        x = min(max(math.log(max(size, 1)), points[0][0]), points[-1][0])
        for (x0, y0), (x1, y1) in zip(points, points[1:]):
            if x <= x1:
                return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        return points[-1][1]

    def seconds(self, flops, size):
        """The least time for that many operations and bytes, whichever takes longer."""
        return max(flops / self.flops, size / self.bandwidth(size))


def _library():
    """roofline.cpp, compiled."""
    source = HERE / "roofline.cpp"
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-march=native", "-fPIC", "-shared"]
    key = hashlib.sha256(source.read_bytes() + " ".join([*command, _cpu_model()]).encode()).hexdigest()[:16]
    path = BUILD / f"roofline-{key}.so"
    if not path.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.fma_loop.restype = ctypes.c_longlong
    library.fma_loop.argtypes = [ctypes.c_longlong, ctypes.c_void_p]
    for copy in (library.copy_relu, library.copy_relu_nontemporal):
        copy.restype = None
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_longlong]
    return library


def _seconds(calls):
    """From the start to the end of all `calls`, each on a thread of its own: C code, which runs without the GIL."""
    barrier = threading.Barrier(len(calls) + 1)

    def run(call):
        barrier.wait()
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def _best_rate(call, work, threads, tries=7):
    """`work` per second of `call(thread, repeats)`, on every thread at once."""
    call(0, 1)
    repeats = 1
    while (seconds := _seconds([lambda: call(0, repeats)])) < SECONDS / 4:  # noqa: B023  (called at once)
        repeats *= 2
    repeats = max(1, round(repeats * SECONDS / seconds))
    best = min(_seconds([lambda t=t: call(t, repeats) for t in range(threads)]) for _ in range(tries))
    return work * repeats * threads / best


def measure_roofline(threads):
    """The ceilings of `threads` cores; takes about two seconds."""
    library = _library()
    sinks = [torch.zeros(16) for _ in range(threads)]
    flops = _best_rate(
        lambda t, n: library.fma_loop(n * 1000, sinks[t].data_ptr()),
        library.fma_loop(1000, sinks[0].data_ptr()),
        threads,
    )
    copy = []
    for size in ARRAY_BYTES:
        part = max(size // 4 // threads // 16, 1) * 16  # floats of each thread
        x, y = (torch.ones(threads, part) for _ in range(2))
        addresses = [(x[t].data_ptr(), y[t].data_ptr()) for t in range(threads)]
        rates = [
            _best_rate(lambda t, n: function(*addresses[t], part, n), 8 * part, threads, tries=5)  # noqa: B023
            for function in (library.copy_relu, library.copy_relu_nontemporal)
        ]
        copy.append((8 * part * threads, max(rates)))
    return Roofline(threads, flops, copy)


def fma_run():
    """The peak in turns with a product, since clocks drift: (the operations of a call, a function of loops that returns
    the seconds of a call, as a tuple of one). On one core, a call takes about a millisecond."""
    library, sink, repeats = _library(), torch.zeros(16), 300_000

    def run(loops):
        start = time.perf_counter()
        for _ in range(loops):
            library.fma_loop(repeats, sink.data_ptr())
        return ((time.perf_counter() - start) / loops,)

    return library.fma_loop(repeats, sink.data_ptr()), run


def _cpu_model():
    match = re.search(r"^(?:model name|Hardware|CPU implementer)\s*: (.*)$", _read("/proc/cpuinfo"), re.M)
    return match.group(1) if match else platform.processor() or platform.machine()


def _read(path):
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _caches():
    """L1d, L2 and L3 as the first core sees them: {"L1d": "48K", ...}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (kind := _read(index / "type")) != "Instruction":
            level = _read(index / "level")
            caches[f"L{level}{'d' if kind == 'Data' else ''}"] = _read(index / "size")
    return caches


def busy_share(seconds=0.5):
    """How much of the processor other programs use, from 0 to 1, while this one sleeps; None where nothing tells."""

    def read():
        ticks = [int(x) for x in _read("/proc/stat").partition("\n")[0].split()[1:9]]
        return sum(ticks), sum(ticks[3:5])  # all; idle and waiting for disks

    try:
        (all0, idle0), _, (all1, idle1) = read(), time.sleep(seconds), read()
        return round(1 - (idle1 - idle0) / (all1 - all0), 2)
    except (ValueError, ZeroDivisionError):
        return None


def describe():
    """Processor, memory and versions, for reports: no names of hosts or users."""
    info = dlkernels.info()
    memory = re.search(r"MemTotal: *(\d+) kB", _read("/proc/meminfo"))
    return {
        "processor": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": _caches(),
        "memory GB": round(int(memory.group(1)) * 1024 / 1e9, 1) if memory else None,
        "instruction set": info["instruction set"].split()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "dlkernels": info["dlkernels"],
    }
