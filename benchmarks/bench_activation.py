"""Activations: 64 elements (the cost of a call), in cache, beyond it."""

from harness import Case, bench

SHAPES = [(64,), (1, 7, 13, 17), (64, 32, 28, 28), (8, 64, 112, 112)]
FUNCTIONS = {
    "relu": {},
    "relu6": {},
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {},
    "hardtanh": {},
    "sigmoid": {},
    "tanh": {},
    "gelu": {},
    "gelu_tanh": {"approximate": "tanh"},
    "silu": {},
    "softplus": {},
}
QUICK = {"relu 64", "relu 8x64x112x112", "tanh 64x32x28x28", "gelu 64x32x28x28", "gelu_tanh 64x32x28x28"}


def activation(name, shape):
    function, options = name.removesuffix("_tanh"), FUNCTIONS[name]
    case = f"{name} {'x'.join(map(str, shape))}"
    return Case(case, lambda library, x: getattr(library, function)(x, **options), (shape,), quick=case in QUICK)


CASES = [activation(name, shape) for name in FUNCTIONS for shape in SHAPES]

test_activation = bench(CASES)
