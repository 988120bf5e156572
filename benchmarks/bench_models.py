"""Whole models: a training step (forward, loss, backward, SGD) and inference, against the better memory format of eager
PyTorch and, in training on most threads, against torch.compile; ours, by `dlkernels.convert`, in its better format too.

They take turns of several steps, TURN_SECONDS at least: what a step finds in the caches is what the step before it
left there, as in training, not what another library did. Which format is better is found by such turns before the
timing. torch.compile gets the one that suits eager; its compilation is not timed. Training is timed both with our
caching allocator and without.
"""

import copy
import functools
import time

import memory
import pytest
import torch
from harness import ResultError, cache_switched_off, compare, loops_and_rounds, take_turns
from models import MODELS
from torch import nn

import dlkernels

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
BUDGET = 10  # times that of an op
LEAST_ROUNDS = 5
TURN_SECONDS = 0.1
CHOICE_SECONDS = 1  # to find the better format
QUICK = ("LeNet", "training")


class Contender:
    """A model with loss, optimizer and data of its own, in one memory format."""

    def __init__(self, model, images, layout, library=nn):
        self.layout = layout
        self.model = copy.deepcopy(model).to(memory_format=FORMATS[layout])
        self.images = images.contiguous(memory_format=FORMATS[layout])
        self.loss = library.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        if library is dlkernels.nn:
            dlkernels.convert(self.model)

    def training(self):
        self.optimizer.zero_grad()
        y = self.model(self.images)
        self.loss(y, torch.arange(len(y)) * 7 % y.size(1)).backward()
        self.optimizer.step()

    def inference(self):
        with torch.no_grad():
            self.model(self.images)

    def run(self, mode):
        """What `take_turns` takes."""
        self.model.train(mode == "training")
        step = getattr(self, mode)

        def run(loops):
            start = time.perf_counter()
            for _ in range(loops):
                step()
            return ((time.perf_counter() - start) / loops,)

        return run

    def results(self):
        """Output and gradients in evaluation mode, where nothing is random."""
        y = self.model.eval()(self.images)
        return [y.detach(), *torch.autograd.grad(y.square().mean(), list(self.model.parameters()))]


def check(name, ours, theirs):
    """Raises ResultError unless outputs and gradients agree. The margin is wide: errors of many layers add up."""
    for a, b in zip(ours.results(), theirs.results(), strict=True):
        if not (a - b).norm() <= 1e-3 * b.norm() + 1e-6:
            raise ResultError(f"{name}: results differ by {(a - b).norm() / b.norm():.3g} of their norm")


@functools.lru_cache(maxsize=1)
def prepare(name):
    """The contenders, checked: a list for PyTorch and one for ours, one per format."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, images = make(), torch.randn(shape)
    theirs, ours = ([Contender(model, images, layout, library) for layout in FORMATS] for library in (nn, dlkernels.nn))
    for contender in ours:
        check(name, contender, theirs[0])
    return theirs, ours


def fastest(contenders, mode):
    """The one with the fastest of several turns."""
    runs = {contender: contender.run(mode) for contender in contenders}
    seconds = {contender: [] for contender in contenders}
    loops, rounds = loops_and_rounds(runs.values(), CHOICE_SECONDS, 1, TURN_SECONDS)
    for _ in range(rounds):
        for contender, run in runs.items():
            seconds[contender].append(run(loops))
    return min(contenders, key=lambda contender: min(seconds[contender]))


def compiled(contender):
    """A copy of it that runs through torch.compile."""
    copied = Contender(contender.model, contender.images, contender.layout)
    copied.model.compile()
    return copied


def uncached(run):
    """The same with the caching allocator off; afterwards, a step fills the cache again."""

    def without(loops):
        with cache_switched_off():
            seconds = run(loops)
        run(1)
        return seconds

    return without


def measure(benchmark, name, mode, threads, budget, with_compile):
    theirs, ours = (fastest(contenders, mode) for contenders in prepare(name))
    runs = {"torch": theirs.run(mode), "ours": ours.run(mode)}
    if mode == "training":
        runs = {"uncached": uncached(runs["ours"])} | runs
    if with_compile:
        runs = {"compile": compiled(theirs).run(mode)} | runs
    samples = take_turns(benchmark, runs, BUDGET * budget, LEAST_ROUNDS, TURN_SECONDS)
    seconds = {run: [total for (total,) in rounds] for run, rounds in samples.items()}
    row = {"op": "model", "case": name, "phase": mode, "threads": threads, **compare(seconds)}
    for library, contender in (("torch", theirs), ("ours", ours)):
        row[f"format {library}"] = contender.layout
        if mode == "training":
            kept_anyway = [*contender.model.parameters(), *contender.model.buffers()]
            row[f"saved {library}"] = memory.bytes_saved(contender.training, kept_anyway)
        row[f"peak {library}"] = memory.peak(getattr(contender, mode))
    return row


@pytest.mark.parametrize("name, mode", [
    pytest.param(name, mode, id=f"{name} {mode}", marks=[pytest.mark.quick] * ((name, mode) == QUICK))
    for name in MODELS
    for mode in ("training", "inference")
])  # fmt: skip
def test_model(benchmark, name, mode, threads, budget, compile_models):
    torch.set_num_threads(threads)
    benchmark.group = "model"
    row = measure(benchmark, name, mode, threads, budget, compile_models and mode == "training")
    benchmark.extra_info["rows"] = [row]
