"""What the kernels are to reach, row by row, on the machine that the targets were set on (two cores of an AMD Zen 3).

A target takes the rows of the results that it is about. `value` reads what must reach `least` from one of them; the
target is met if it does in every one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from results import BACKWARD, FORWARD

X = "8x64x112x112"
WINOGRAD = r"conv2d 3x3 (64->64|128->128|256->256|512->512|64->128|256->512) \S+ N"
LENET = r"conv2d 5x5 (1->6|6->16) "
DEPTHWISE = r"conv2d 3x3(/2)? g(144|576|960) "
OTHER_CONV = r"conv2d (7x7/2|1x1|1x7|7x1|3x3/\d \d|4x4/2|5x5 64|3x3 d2|3x3 g32)"


# The share of the operations counted that Winograd's algorithm needs: of a filter, what its tiles' planes and groups of
# taps take per output and tap (csrc/cpu/winograd_tiles.h).
WINOGRAD_OPERATIONS = {
    r"conv2d 3x3 (d2 )?\d": 36 / 16 / 9,
    r"conv2d 3x3/2 \d": 4 * 25 / 16 / 9,
    r"conv2d 4x4/2 \d": 4 * 25 / 16 / 16,
    r"conv2d 5x5 64": 4 * 36 / 16 / 25,
    r"conv2d (1x7|7x1) ": 2 * 6 / 3 / 7,
}


def share_of_operations(case):
    return next((share for cases, share in WINOGRAD_OPERATIONS.items() if re.match(cases, case)), 1.0)


def ratio(row):
    return row["ratio"]


def share_of_peak(row):
    """Of the FMA peak, both measured in turns."""
    return row["of peak"]


def microseconds_saved(row):
    """Against PyTorch, per call."""
    return (row["torch"] - row["ours"]) * 1e6


@dataclass(frozen=True)
class Target:
    name: str
    cases: str  # a regular expression that the beginning of a case's name matches
    phases: tuple
    least: float
    value: Callable = ratio
    unit: str = "×"
    threads: int | None = 2  # None: any

    def most(self, row):
        """The ratio that the roofline allows. None for what is no ratio, and where any shape counts: small ones are
        not bound by it."""
        if self.value is not ratio or self.threads is None:
            return None
        return row["ratio"] / row["share"] / share_of_operations(row["case"])

    def rows(self, rows):
        return [
            row
            for row in rows
            if re.match(self.cases, row["case"])
            and row["phase"] in self.phases
            and self.threads in (None, row["threads"])
        ]


def both_ways(name, cases, forward, backward):
    return [Target(f"{name} forward", cases, FORWARD, forward), Target(f"{name} backward", cases, BACKWARD, backward)]


TARGETS = [
    Target("matmul, linear: any shape", r"(matmul|linear) ", FORWARD, 1.0, threads=None),
    Target("matmul 512-2048, share of FMA peak, one thread", r"matmul (512|1024|2048)x\1 ", FORWARD, 0.92,
           share_of_peak, "", 1),
    Target("conv 3x3, 64-512 channels, forward", WINOGRAD, FORWARD, 2.2),
    Target("conv 3x3, 64-512 channels, input gradient", WINOGRAD, ("input grad",), 1.6),
    Target("conv 3x3, 64-512 channels, weight gradient", WINOGRAD, ("weight grad",), 2.5),
    *both_ways("conv 7x7/2, 1x1, strided, dilated, grouped", OTHER_CONV, 1.05, 1.2),
    *both_ways("conv 5x5 of LeNet", LENET, 3.0, 1.4),
    *both_ways("depthwise 3x3", DEPTHWISE, 1.5, 1.2),
    *both_ways("max_pool2d 3/2/1, 2/2 NCHW", rf"max_pool2d (3/2/1|2/2) {X} nchw", 18, 2),
    *both_ways("max_pool2d channels_last", rf"max_pool2d (3/2/1|2/2) {X} nhwc", 1.8, 1.8),
    *both_ways("avg_pool2d 2", rf"avg_pool2d 2/2 {X} nchw", 7, 12),
    *both_ways("adaptive_avg_pool2d(1)", rf"adaptive_avg_pool2d 1 {X} nchw", 1.0, 2.5),
    *both_ways("batch_norm train", rf"batch_norm train {X} nchw", 4, 1.4),
    Target("batch_norm eval", rf"batch_norm eval {X} nchw", FORWARD, 1.4),
    *both_ways("dropout", rf"dropout 0.5 {X} nchw", 40, 2),
    Target("dropout forward, one thread", rf"dropout 0.5 {X} nchw", FORWARD, 25, threads=1),
    Target("tanh forward", rf"tanh {X}", FORWARD, 5),
    Target("sigmoid, silu forward", rf"(sigmoid|silu) {X}", FORWARD, 1.7),
    *both_ways("gelu", rf"gelu {X}", 1.1, 1.4),
    *both_ways("gelu (tanh)", rf"gelu_tanh {X}", 3.3, 4),
    *both_ways("relu, leaky_relu beyond the cache", rf"(relu|leaky_relu) {X}", 1.3, 1.2),
    *both_ways("relu, leaky_relu in the cache", r"(relu|leaky_relu) (1x7|64x32)", 1.0, 1.0),
    Target("softmax, log_softmax 1024x1000", r"(log_)?softmax 1024x1000", FORWARD, 1.7),
    Target("softmax over channels, NCHW", rf"softmax {X} dim 1 nchw", FORWARD, 2),
    Target("cross_entropy 1024x1000 forward", r"cross_entropy 1024x1000$", FORWARD, 2.5),
    Target("cross_entropy 1024x1000 forward and gradient", r"cross_entropy 1024x1000$", ("both",), 3.5),
    *both_ways("layer_norm 1024x1000", r"layer_norm 1024x1000", 1.4, 1.6),
    Target("64 elements: microseconds saved per call (-1.5 allowed)", r"\w+ (64|1x64)$", FORWARD, -1.5,
           microseconds_saved, "µs", None),
    Target("no shape loses", r"(?!model|chain)", FORWARD + BACKWARD, 1.0, threads=None),
]  # fmt: skip

# Whole models, a training step: ratios to the better layout of eager and to torch.compile. Bytes saved for backward.
MODELS = {"MLP": 1.3, "LeNet": 2.0, "CNN": 3.0, "ResNet-18": 1.8, "VGG-11-BN": 1.6}
SAVED_MB = {"CNN": 20, "ResNet-18": 150}
