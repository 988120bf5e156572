"""conv2d: layers of LeNet, the CNN, VGG, ResNet-18/50, MobileNetV2 and others, and ragged ones, in both formats."""

from harness import Case, bench

LAYOUTS = ("nchw", "nhwc")
ALL = ("forward", "training", "input grad", "weight grad")


def conv2d(k, c_in, c_out, size, n=8, stride=1, padding=None, dilation=1, groups=1, bias=False, alone=False, quick=()):
    """A case for each layout. k, size: of the (square) filter and image, or (height, width). alone: each gradient by
    itself, too. quick: the layouts that are in the quick subset."""
    r, s = k if isinstance(k, tuple) else (k, k)
    h, w = size if isinstance(size, tuple) else (size, size)
    padding = (dilation * (r - 1) // 2, dilation * (s - 1) // 2) if padding is None else (padding, padding)
    p = (h + 2 * padding[0] - dilation * (r - 1) - 1) // stride + 1
    q = (w + 2 * padding[1] - dilation * (s - 1) - 1) // stride + 1
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def call(library, x, weight, bias=None):
        return library.conv2d(x, weight, bias, **options)

    extras = [f"/{stride}"] * (stride > 1) + [f" d{dilation}"] * (dilation > 1) + [f" g{groups}"] * (groups > 1)
    for layout in LAYOUTS:
        yield Case(
            f"conv2d {r}x{s}{''.join(extras)} {c_in}->{c_out} {h}x{w} N{n} {layout}",
            call,
            ((n, c_in, h, w), (c_out, c_in // groups, r, s), *[(c_out,)] * bias),
            phases=ALL if alone else ALL[:2],
            channels_last=layout == "nhwc",
            flops=2 * n * c_out * p * q * (c_in // groups) * r * s,
            quick=layout in quick,
        )


CASES = [
    # 3x3, stride 1: ResNet-18, VGG
    *conv2d(3, 64, 64, 56, alone=True, quick=LAYOUTS),
    *conv2d(3, 128, 128, 28, alone=True),
    *conv2d(3, 256, 256, 14, alone=True),
    *conv2d(3, 512, 512, 7, alone=True, quick=["nchw"]),
    *conv2d(3, 3, 64, 64, bias=True),
    *conv2d(3, 64, 128, 32, bias=True),
    *conv2d(3, 256, 512, 8, bias=True),
    *conv2d(3, 64, 64, 224, n=1),
    # LeNet, the CNN
    *conv2d(5, 1, 6, 28, n=64, bias=True, alone=True, quick=["nchw"]),
    *conv2d(5, 6, 16, 14, n=64, padding=0, bias=True, alone=True),
    *conv2d(3, 1, 32, 28, n=64, bias=True),
    *conv2d(3, 32, 64, 14, n=64, bias=True),
    # AlexNet's second layer, DCGAN's, ViT-B/16's first
    *conv2d(5, 64, 192, 27),
    *conv2d(4, 64, 128, 32, stride=2, padding=1),
    *conv2d(16, 3, 768, 224, stride=16, padding=0, bias=True),
    # filters as large as the image: LeNet-5's third layer, the last of DCGAN's discriminator
    *conv2d(5, 16, 120, 5, n=64, padding=0, bias=True),
    *conv2d(4, 512, 1, 4, n=64, padding=0),
    # ResNet's first layer, strided ones, 1x1
    *conv2d(7, 3, 64, 224, stride=2, alone=True, quick=["nchw"]),
    *conv2d(3, 64, 128, 56, stride=2),
    *conv2d(3, 256, 512, 14, stride=2),
    *conv2d(1, 64, 128, 56, stride=2),
    *conv2d(1, 64, 256, 56),
    *conv2d(1, 256, 64, 56, quick=LAYOUTS),
    *conv2d(1, 1024, 256, 14),
    *conv2d(1, 512, 2048, 7),
    # MobileNetV2: the first layer, depthwise, and the 1x1 around it
    *conv2d(3, 3, 32, 224, stride=2),
    *conv2d(3, 144, 144, 56, groups=144, quick=LAYOUTS),
    *conv2d(3, 144, 144, 56, stride=2, groups=144),
    *conv2d(3, 576, 576, 14, groups=576),
    *conv2d(3, 960, 960, 7, groups=960),
    *conv2d(1, 24, 144, 56),
    *conv2d(1, 320, 1280, 7),
    # dilated, grouped (ResNeXt), one-dimensional filters, ragged, tiny
    *conv2d(3, 64, 64, 28, dilation=2),
    *conv2d(3, 128, 128, 28, groups=32),
    *conv2d((1, 7), 128, 128, 17),
    *conv2d((7, 1), 128, 128, 17),
    *conv2d(3, 17, 31, (37, 41), n=3),
    *conv2d(5, 7, 13, 29, n=1, stride=3),
    *conv2d(3, 1, 1, 113, n=1),
    *conv2d(3, 4, 4, 4, n=1),
]

test_conv2d = bench(CASES)
