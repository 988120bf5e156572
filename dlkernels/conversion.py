"""`convert`, `revert` and `coverage`: from torch.nn layers to ours and back, in place.

A layer is converted by changing its class, which is all that differs between torch.nn.X and dlkernels.nn.X: parameters,
buffers, hooks, flags and every reference to the layer stay the very same objects.
"""

import dataclasses

import torch

import dlkernels.nn

_TO_OURS = {getattr(torch.nn, name): getattr(dlkernels.nn, name) for name in dlkernels.nn.__all__}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_OURS.items()}
_LAYERS = tuple(theirs for theirs in _TO_OURS if theirs is not torch.nn.Sequential)


def _why_not(module):
    """Why `module`, which is not of a convertible class or not plainly so, stays as it is; None if it can convert."""
    if type(module) in _TO_OURS:
        return "its forward is overridden on the instance" if "forward" in vars(module) else None
    for theirs in _TO_OURS:
        if isinstance(module, theirs):
            return f"a subclass of torch.nn.{theirs.__name__}, whose behaviour may differ"
    return "no kernel for this layer"


def convert(model):
    """Makes every supported torch.nn layer in `model` (itself included) a dlkernels.nn layer; returns `model`.

    Parameters and buffers stay the same objects, so an optimizer made before stays valid; hooks, train/eval flags and
    shared modules are kept; subclasses of torch.nn layers are left alone. `coverage(model)` lists both kinds. TypeError
    unless `model` is a torch.nn.Module.
    """
    _check_module("convert", model)
    for module in model.modules():
        if type(module) in _TO_OURS and _why_not(module) is None:
            module.__class__ = _TO_OURS[type(module)]
    return model


def revert(model):
    """Undoes `convert`: every dlkernels.nn layer in `model` becomes its torch.nn namesake again; returns `model`."""
    _check_module("revert", model)
    for module in model.modules():
        if type(module) in _TO_TORCH:
            module.__class__ = _TO_TORCH[type(module)]
    return model


@dataclasses.dataclass(frozen=True)
class LayerCoverage:
    """One layer of a model: its dotted name, its class, "converted", "convertible" or "left alone", and why."""

    name: str
    layer: str
    status: str
    reason: str = ""


class Coverage(list):
    """A list of `LayerCoverage`, printed as a table."""

    def __str__(self):
        rows = [("layer", "class", "status", "why")]
        rows += [(row.name or "(model)", row.layer, row.status, row.reason) for row in self]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        counts = {status: sum(row.status == status for row in self) for status in dict.fromkeys(r.status for r in self)}
        summary = ", ".join(f"{count} {status}" for status, count in counts.items())
        return "\n".join([*lines, summary])


def coverage(model):
    """What `convert` did or would do to each layer of `model`, and why not where it does not: a `Coverage`.

    Containers (modules with children) are listed only if they are of a layer's class; Sequential is none. TypeError
    unless `model` is a torch.nn.Module.
    """
    _check_module("coverage", model)
    rows = Coverage()
    for name, module in model.named_modules():
        if type(module) in (torch.nn.Sequential, dlkernels.nn.Sequential):  # converted for the layers in it
            continue
        layer = _class_name(type(module))
        if type(module) in _TO_TORCH:
            rows.append(LayerCoverage(name, layer, "converted", _fallback_reason(module)))
        elif (reason := _why_not(module)) is None:
            rows.append(LayerCoverage(name, layer, "convertible", _fallback_reason(module)))
        elif not any(True for _ in module.children()) or isinstance(module, _LAYERS):
            rows.append(LayerCoverage(name, layer, "left alone", reason))
    return rows


def _class_name(cls):
    """The name that a user writes: torch.nn.Linear, not torch.nn.modules.linear.Linear."""
    for namespace in (torch.nn, dlkernels.nn):
        if getattr(namespace, cls.__name__, None) is cls:
            return f"{namespace.__name__}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _fallback_reason(module):
    """Why a converted layer would still run PyTorch's ops: parameters that our kernels do not take."""
    for parameter in module.parameters(recurse=False):
        if parameter.dtype not in (torch.float32, torch.float64):
            return f"runs PyTorch's op: no kernels for {parameter.dtype}"
        if parameter.device.type != "cpu":
            return f"runs PyTorch's op: no kernels for {parameter.device.type}"
    return ""


def _check_module(function, model):
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {type(model).__name__}")
