"""What the op tests share: inputs in every layout, and the comparison with PyTorch and with float64."""

import contextlib

import torch

import dlkernels

DTYPES = [torch.float32, torch.float64]


def rand(*shape, dtype=torch.float32, seed=0):
    """Standard normal values; the same for the same arguments."""
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return x.to(torch.get_default_device(), dtype)


def on_cpu(function):
    """`function` of tensors on the CPU, whatever device they come from: for what PyTorch's CUDA kernels get wrong."""

    def call(*inputs):
        outputs = function(*(x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs))
        back = torch.get_default_device()
        return tuple(y.to(back) for y in outputs) if isinstance(outputs, tuple) else outputs.to(back)

    return call


def _offset(x):
    """The same values one element into a larger buffer: a pointer that no vector alignment fits."""
    storage = torch.empty(x.numel() + 1, dtype=x.dtype)
    view = storage[1:].view(x.shape)
    return view.copy_(x)


def _strided(x):
    """The same values as every second element along the last dimension."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    view = wide[..., ::2]
    return view.copy_(x)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "offset": _offset,
    "strided": _strided,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous(),
}


@contextlib.contextmanager
def kernel_ran(op):
    """Asserts that the calls inside went to our kernel of `op` and none of any op fell back to PyTorch."""
    dlkernels.reset_counts()
    yield
    counts = dlkernels.counts()
    assert counts.get(op, {}).get("kernel", 0) > 0, f"{op} did not run: {counts}"
    fallbacks = {name: count["fallback"] for name, count in counts.items() if count["fallback"]}
    assert not fallbacks, f"fell back to PyTorch: {fallbacks}"


def _run(function, inputs, dys):
    """Outputs and gradients of every floating-point input that requires grad."""
    inputs = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x for x in inputs]
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    wanted = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
    if not wanted:
        return outputs, []
    differentiable = [y for y in outputs if y.requires_grad]
    if dys is None:
        dys = [rand(*y.shape, dtype=y.dtype, seed=100 + i) for i, y in enumerate(differentiable)]
    grads = torch.autograd.grad(differentiable, wanted, [dy.to(y.dtype) for dy, y in zip(dys, differentiable)])
    return outputs, list(grads)


def to_double(inputs):
    return [
        x.detach().double().requires_grad_(x.requires_grad)
        if isinstance(x, torch.Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]


def assert_close_to_exact(name, ours, theirs, exact, roundings=4, factor=2.0):
    """Our error against float64 is at most `factor` times PyTorch's, or `roundings` roundings of the largest value."""
    assert ours.shape == theirs.shape, f"{name}: shape {tuple(ours.shape)}, PyTorch's {tuple(theirs.shape)}"
    assert ours.dtype == theirs.dtype, f"{name}: dtype {ours.dtype}, PyTorch's {theirs.dtype}"
    if not ours.is_floating_point():
        assert torch.equal(ours, theirs), f"{name}: values differ"
        return
    if ours.numel() == 0:
        return
    finite = torch.isfinite(exact)
    same = torch.equal(ours[~finite].double().nan_to_num(), exact[~finite].nan_to_num())
    assert same and torch.equal(ours.isnan(), exact.isnan()), f"{name}: NaN or Inf differ from PyTorch's"
    if not finite.any():
        return
    if ours.dtype == exact.dtype:  # no more exact than ours: the reference rounds as much
        roundings *= 2
    scale = exact[finite].abs().max().item()
    our_error = (ours.double() - exact)[finite].abs().max().item()
    their_error = (theirs.double() - exact)[finite].abs().max().item()
    rounding = roundings * torch.finfo(ours.dtype).eps * scale + torch.finfo(ours.dtype).tiny
    assert our_error <= factor * their_error + rounding, (
        f"{name}: error {our_error:.3g} against float64, PyTorch's {their_error:.3g}, scale {scale:.3g}"
    )


def check(ours, theirs, inputs, *, op, dys=None, strides=True, roundings=4):
    """Compares `ours(*inputs)` with `theirs(*inputs)`: values, gradients, shapes, dtypes and strides.

    Values are judged by their error against `theirs` in float64. Asserts that the kernel of `op` ran. Inputs with
    requires_grad get gradients, for random output gradients or for `dys`. Long sums, in
    float64 too, where the reference rounds as much as ours, need more `roundings`.
    """
    their_outputs, their_grads = _run(theirs, inputs, dys)
    exact_outputs, exact_grads = _run(theirs, to_double(inputs), dys)
    with kernel_ran(op):
        our_outputs, our_grads = _run(ours, inputs, dys)
    for i, values in enumerate(zip(our_outputs, their_outputs, exact_outputs, strict=True)):
        assert_close_to_exact(f"{op} output {i}", *values, roundings)
        # On GPUs PyTorch gives up channels_last where cuDNN lacks it.
        if strides and values[0].is_cpu and values[0].numel() > 0:
            assert values[0].stride() == values[1].stride(), (
                f"{op} output {i}: strides {values[0].stride()}, PyTorch's {values[1].stride()}"
            )
    for i, values in enumerate(zip(our_grads, their_grads, exact_grads, strict=True)):
        assert_close_to_exact(f"{op} gradient {i}", *values, roundings)


def check_gradients(function, inputs):
    """gradcheck and gradgradcheck in float64 over the inputs that require grad."""
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def check_same_bits(function, inputs, settings, change):
    """Outputs and gradients are bitwise the same for all settings; change(setting) makes one the current one."""
    expected = None
    for setting in settings:
        change(setting)
        outputs, gradients = _run(function, inputs, None)
        expected = expected or [*outputs, *gradients]
        for a, b in zip(expected, [*outputs, *gradients], strict=True):
            same = torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
            assert same, f"differs with {setting}"


def check_threads(function, inputs, max_threads=4):
    """Outputs and gradients are bitwise the same for 1 to max_threads threads."""
    before = torch.get_num_threads()
    try:
        check_same_bits(function, inputs, range(1, max_threads + 1), torch.set_num_threads)
    finally:
        torch.set_num_threads(before)
