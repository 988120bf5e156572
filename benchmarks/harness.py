"""How a case is measured: PyTorch and dlkernels on the same inputs, first compared, then timed in turns.

A case is `call(library, *inputs)` for library TORCH (torch.nn.functional and torch.matmul) or dlkernels.functional. It
is timed in up to four phases: "forward" under no_grad, and "training", "input grad", "weight grad": forward and
backward with gradients of all inputs, of the first, of the second alone. In these backward is timed by itself, too.

- Rounds interleave: PyTorch, dlkernels, PyTorch, dlkernels, ..., so that a machine that slows down does so for both.
- A sample is at least SAMPLE_SECONDS long: short calls loop inside it.
- Times include freeing what a call returned, and nothing else stays alive. Python's garbage collector is off.
- The ratio is PyTorch's median over ours; its spread, 20th and 80th percentile of the ratios of the rounds.
"""

import contextlib
import functools
import gc
import math
import statistics
import time
import types
from collections.abc import Callable
from dataclasses import dataclass

import machine
import memory
import pytest
import torch
import torch.nn.functional as F

import dlkernels
import dlkernels.functional as DF

TORCH = types.SimpleNamespace(**vars(F), matmul=torch.matmul)

SAMPLE_SECONDS = 2e-4
MOST_LOOPS = 1000
LEAST_ROUNDS, MOST_ROUNDS = 7, 100  # between them by the time budget
CHEAP_FLOPS, CHEAP_ELEMENTS = 5e8, 2e6  # up to here the check computes the result in float64 too

PHASES = {"forward": None, "training": ..., "input grad": (0,), "weight grad": (1,)}  # gradients of which inputs


@dataclass(frozen=True)
class Case:
    """A line of the report; its name begins with the op. See the module's docstring for `call` and `phases`.

    shapes: of the random float32 inputs that have gradients. data: makes of them what follows them (targets, running
    statistics). flops: multiplications and additions of the forward pass; each gradient of a product has as many.
    backward_reads: whether the backward pass needs the inputs (for the bytes that it cannot avoid). verify: raises
    unless results, a list of output and gradients, are right, where PyTorch's own differ by chance. cached: with our
    caching allocator. peak: forward on one thread is also compared with the FMA peak, in the same rounds.
    """

    name: str
    call: Callable
    shapes: tuple
    data: Callable = lambda *inputs: ()
    phases: tuple = ("forward", "training")
    channels_last: bool = False
    flops: float = 0
    backward_reads: bool = True
    verify: Callable | None = None
    cached: bool = True
    peak: bool = False
    quick: bool = False

    @property
    def op(self):
        return self.name.split()[0]


class ResultError(AssertionError):
    """Our results differ from PyTorch's, or PyTorch computed them."""


# ---- Inputs and results


class Prepared:
    """A case with its inputs, the gradient of its output, and its sizes."""

    def __init__(self, case, draw=torch.randn, seed=0):
        """draw(shape) makes the first input; all others are standard normal."""
        self.case = case
        torch.manual_seed(seed)
        first, *rest = case.shapes
        self.leaves = [self._in_format(x) for x in (draw(first), *map(torch.randn, rest))]
        self.inputs = [*self.leaves, *case.data(*self.leaves)]
        with torch.no_grad():
            y = self.call(TORCH)
        self.dy = torch.randn_like(y)
        self.output_bytes = y.nbytes

    def _in_format(self, x):
        return x.contiguous(memory_format=torch.channels_last) if self.case.channels_last and x.dim() == 4 else x

    def call(self, library):
        return self.case.call(library, *self.inputs)

    def gradient_of(self, phase):
        """The inputs whose gradients a phase computes, and only these require it from here on."""
        wanted = PHASES[phase]
        chosen = [] if wanted is None else self.leaves if wanted is ... else [self.leaves[i] for i in wanted]
        for leaf in self.leaves:
            leaf.requires_grad_(any(leaf is x for x in chosen))
        return chosen

    def results(self, library):
        """Output and gradients of all inputs."""
        chosen = self.gradient_of("training")
        y = self.call(library)
        if y.shape != self.dy.shape:
            raise ResultError(f"{self.case.name}: output of {tuple(y.shape)}, PyTorch's of {tuple(self.dy.shape)}")
        return [y.detach(), *torch.autograd.grad(y, chosen, self.dy)]

    def in_double(self):
        """The same in float64, as a Prepared."""
        other = object.__new__(Prepared)
        other.case, other.dy = self.case, self.dy.double()
        other.leaves = [x.detach().double() for x in self.leaves]
        rest = self.inputs[len(self.leaves) :]
        other.inputs = [*other.leaves, *(x.double() if x.is_floating_point() else x for x in rest)]
        return other


def check(prepared, ours=DF):
    """Raises ResultError unless ours gives PyTorch's results, forward and backward, on the inputs that are timed.

    Where float64 is cheap: an error of at most 4 times PyTorch's or 16 roundings of the largest value; elsewhere, a
    difference from PyTorch of at most 1e-4 of the largest value. (tests/ holds the kernels to more.)
    """
    case = prepared.case
    dlkernels.reset_counts()
    results = prepared.results(ours)
    counts = dlkernels.counts()
    if not counts or any(count["fallback"] for count in counts.values()):
        raise ResultError(f"{case.name}: PyTorch ran in place of a kernel: {counts}")
    if case.verify:
        case.verify(prepared, results)
        return
    references = prepared.results(TORCH)
    cheap = case.flops <= CHEAP_FLOPS and max(y.numel() for y in references) <= CHEAP_ELEMENTS
    exact = prepared.in_double().results(TORCH) if cheap else references
    for i, (y, theirs, reference) in enumerate(zip(results, references, exact, strict=True)):
        scale = reference.abs().max().item()
        allowed = 1e-4 * scale
        if cheap:
            allowed = 16 * torch.finfo(y.dtype).eps * scale + 4 * largest_error(theirs, reference)
        error = largest_error(y, reference)
        if not error <= allowed:  # a NaN is not
            message = f"result {i} is off by {error:.3g}; largest value {scale:.3g}, allowed {allowed:.3g}"
            raise ResultError(f"{case.name}: {message}")


def largest_error(x, reference):
    return (x.double() - reference.double()).abs().max().item()


# ---- Time


def forward_run(call):
    """A function of the number of loops that returns the seconds of one call(), as a tuple of one."""

    def run(loops):
        with torch.no_grad():
            start = time.perf_counter()
            for _ in range(loops):
                call()
            return ((time.perf_counter() - start) / loops,)

    return run


def training_run(prepared, phase, call):
    """The same for the seconds of forward and backward, and of backward alone."""
    dy, chosen = prepared.dy, prepared.gradient_of(phase)

    def run(loops):
        both = backward = 0.0
        for _ in range(loops):
            start = time.perf_counter()
            y = call()
            middle = time.perf_counter()
            torch.autograd.grad(y, chosen, dy)
            del y
            end = time.perf_counter()
            both += end - start
            backward += end - middle
        return both / loops, backward / loops

    return run


@functools.lru_cache(maxsize=1)
def prepare(case):
    """The inputs of a case, whose results are checked; kept for its next phase and number of threads."""
    prepared = Prepared(case)
    check(prepared)
    return prepared


@contextlib.contextmanager
def no_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def cache_switched_off():
    """Without our caching allocator."""
    limit = dlkernels.memory_stats()["limit"]
    dlkernels.set_cache_limit(0)
    try:
        yield
    finally:
        dlkernels.set_cache_limit(limit)


def loops_and_rounds(runs, budget, least, sample_seconds=SAMPLE_SECONDS):
    """How many calls make a sample, and how many rounds of all `runs` fit the budget in seconds. Warms up, too."""
    seconds = []
    for run in runs:
        run(1)
        seconds.append(run(1)[0])
    loops = min(MOST_LOOPS, math.ceil(sample_seconds / min(seconds)))
    return loops, min(MOST_ROUNDS, max(least, int(budget / (loops * sum(seconds)))))


def take_turns(benchmark, runs, budget, least=LEAST_ROUNDS, sample_seconds=SAMPLE_SECONDS):
    """Samples of each of `runs` (functions of loops, by name), in rounds. pytest-benchmark times the last."""
    samples = {name: [] for name in runs}
    *others, last = runs
    loops, rounds = loops_and_rounds(runs.values(), budget, least, sample_seconds)

    def turn(name):
        samples[name].append(runs[name](loops))

    def before_last():
        benchmark.stats.iterations = loops  # pytest-benchmark divides by it, but refuses to be told beside a setup
        for name in others:
            turn(name)

    with no_garbage_collection():
        benchmark.pedantic(turn, args=(last,), setup=before_last, rounds=rounds)
    return samples


# ---- Statistics


def percentile(values, percent):
    """Of at least one value, by linear interpolation between the sorted values."""
    values = sorted(values)
    position = (len(values) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def compare(seconds):
    """Seconds per round of "torch", "ours" and perhaps others, as the numbers of a row of the report."""
    medians = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["ours"], strict=True)]
    spread = {"p20": percentile(ratios, 20), "p80": percentile(ratios, 80)}
    return medians | {"ratio": medians["torch"] / medians["ours"], **spread, "rounds": len(ratios)}


# ---- Rows of the report


def work(prepared, phase):
    """The floating-point operations of a phase, and the bytes of each input, output and gradient that it needs once."""
    case = prepared.case
    inputs = sum(x.nbytes for x in prepared.inputs)
    forward = case.flops, inputs + prepared.output_bytes
    if phase == "forward":
        return forward
    chosen = prepared.gradient_of("training" if phase in ("both", "backward") else phase)
    gradients = sum(x.nbytes for x in chosen)
    backward = (
        len([x for x in chosen if x.dim() > 1]) * case.flops,
        (prepared.output_bytes + gradients + (inputs if case.backward_reads else 0)),
    )
    return backward if phase != "both" else tuple(a + b for a, b in zip(forward, backward))


def row(prepared, phase, threads, seconds, roofline):
    """Times, ratio and share of the roofline; `seconds`: those of each library per round."""
    flops, size = work(prepared, phase)
    numbers = compare(seconds)
    share = roofline.seconds(flops, size) / numbers["ours"]
    identity = {"op": prepared.case.op, "case": prepared.case.name, "phase": phase, "threads": threads}
    return identity | numbers | {"flops": flops, "bytes": size, "share": share}


def measure(case, phase, threads, roofline, budget, benchmark, compiled):
    """The rows of a phase: one of forward or of a gradient alone; of training, "both" and "backward"."""
    torch.set_num_threads(threads)
    prepared = prepare(case)
    libraries = {"torch": TORCH, "ours": DF}
    calls = {name: functools.partial(prepared.call, library) for name, library in libraries.items()}
    if compiled:
        calls = {"compile": torch.compile(calls["torch"])} | calls
    timed = forward_run if phase == "forward" else functools.partial(training_run, prepared, phase)
    runs = {name: timed(call) for name, call in calls.items()}
    if with_peak := case.peak and phase == "forward" and threads == 1:
        peak_flops, peak_run = machine.fma_run()
        runs = {"fma loop": peak_run} | runs
    samples = take_turns(benchmark, runs, budget)
    columns = {"forward": ["forward"], "training": ["both", "backward"]}.get(phase, [None, phase])
    rows = [
        row(prepared, name, threads, {run: [sample[i] for sample in of] for run, of in samples.items()}, roofline)
        for i, name in enumerate(columns)
        if name
    ]
    if with_peak:
        shares = [
            rows[0]["flops"] / ours / (peak_flops / peak)
            for (ours,), (peak,) in zip(samples["ours"], samples["fma loop"], strict=True)
        ]
        rows[0]["of peak"] = statistics.median(shares)
    if phase == "training":
        for name in libraries:
            step = functools.partial(runs[name], 1)
            rows[0][f"saved {name}"] = memory.bytes_saved(step, kept_anyway=prepared.inputs[1:])
            rows[0][f"peak {name}"] = memory.peak(step)
    return rows


def bench(cases):
    """A test for each phase of each case; conftest.py multiplies them by the numbers of threads."""
    parameters = [
        pytest.param(case, phase, id=f"{case.name} {phase}", marks=[pytest.mark.quick] * case.quick)
        for case in cases
        for phase in case.phases
    ]

    @pytest.mark.parametrize("case, phase", parameters)
    def test(benchmark, case, phase, threads, roofline, budget, compiled):
        benchmark.group = case.op
        with contextlib.nullcontext() if case.cached else cache_switched_off():
            benchmark.extra_info["rows"] = measure(case, phase, threads, roofline, budget, benchmark, compiled)

    return test
