"""Chains of layers, where a big output after the other is allocated and freed: what allocation costs shows here, not in
a loop over one op. With the caching allocator and, "uncached", without it."""

import functools

import torch
from harness import TORCH, Case, ResultError, bench, largest_error

import dlkernels.functional as DF

DEPTH = 4


def norm_relu_dropout(library, x, weight, bias, rate=0.25):
    for _ in range(DEPTH):
        x = library.batch_norm(x, None, None, weight, bias, True)
        x = library.dropout2d(library.relu(x), rate)
    return x


def conv_norm_relu(library, x, filters, weight, bias, activation="relu"):
    for _ in range(DEPTH):
        x = library.batch_norm(library.conv2d(x, filters, padding=1), None, None, weight, bias, True)
        x = getattr(library, activation)(x)
    return x


def verify_without_dropping(prepared, results):
    """The masks of the two differ; at rate 0 the chains must not."""
    with torch.no_grad():
        ours, theirs = (norm_relu_dropout(library, *prepared.inputs, rate=0.0) for library in (DF, TORCH))
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise ResultError(f"{prepared.case.name}: results differ by {(ours - theirs).abs().max():.3g}")


def verify_smoothly(prepared, results):
    """A ReLU whose input is a rounding away from 0 is on in one library and off in the other, and a single one changes
    gradients by a thousandth: the chains must agree with GELUs, and their outputs with ReLUs too."""

    def outputs_and_gradients(library):
        y = conv_norm_relu(library, *prepared.inputs, activation="gelu")
        return [y.detach(), *torch.autograd.grad(y, prepared.leaves, prepared.dy)]

    with torch.no_grad():
        pairs = [(results[0], prepared.call(TORCH))]
    pairs += zip(outputs_and_gradients(DF), outputs_and_gradients(TORCH), strict=True)
    for i, (ours, theirs) in enumerate(pairs):
        error, allowed = largest_error(ours, theirs), 1e-4 * theirs.abs().max().item()
        if not error <= allowed:
            raise ResultError(f"{prepared.case.name}: result {i} differs by {error:.3g}, allowed {allowed:.3g}")


def chain(label, call, shape, *weights, quick=False, **options):
    name = f"chain {DEPTH} x ({label}) {'x'.join(map(str, shape))}"
    make = functools.partial(Case, call=call, shapes=(shape, *weights), phases=("training",), **options)
    yield make(name, quick=quick)
    yield make(f"{name} uncached", cached=False)


CASES = [
    *chain("batch_norm, relu, dropout2d", norm_relu_dropout, (16, 64, 112, 112), (64,), (64,),
           verify=verify_without_dropping, quick=True),
    *chain("batch_norm, relu, dropout2d", norm_relu_dropout, (8, 64, 56, 56), (64,), (64,),
           verify=verify_without_dropping),
    *chain("conv2d 3x3, batch_norm, relu", conv_norm_relu, (8, 64, 56, 56), (64, 64, 3, 3), (64,), (64,),
           verify=verify_smoothly),
]  # fmt: skip

test_chain = bench(CASES)
