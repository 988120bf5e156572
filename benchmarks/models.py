"""The whole models of the benchmarks, in plain torch.nn: what people train, at sizes that a CPU trains."""

from torch import nn


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def lenet():
    """LeCun et al. 1998, with max-pooling and ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def cnn(dropout=0.25):
    """The model of examples/train_cnn.py."""
    return nn.Sequential(
        *_cnn_block(1, 32),
        nn.Dropout2d(dropout),
        *_cnn_block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(2 * dropout),
        nn.Linear(128, 10),
    )


def _cnn_block(c_in, c_out):
    return nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)


def vgg11_bn(classes=10, head=512):
    """Simonyan & Zisserman 2014, configuration A with batch norm, with a narrow head for 64 x 64 images."""
    layers, c_in = [], 3
    for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            c_in = width
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(512 * 2 * 2, head), nn.ReLU(), nn.Dropout(0.5), nn.Linear(head, classes)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input passes, through a 1x1 convolution where the size changes."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.residual(x) + self.shortcut(x))


def resnet18(classes=1000):
    """He et al. 2015."""
    blocks, c_in = [], 64
    for width in (64, 128, 256, 512):
        blocks += [BasicBlock(c_in, width, 1 if width == 64 else 2), BasicBlock(width, width, 1)]
        c_in = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


# What makes it, the shape of its input.
MODELS = {
    "MLP": (mlp, (128, 1, 28, 28)),
    "LeNet": (lenet, (64, 1, 28, 28)),
    "CNN": (cnn, (64, 1, 28, 28)),
    "VGG-11-BN": (vgg11_bn, (8, 3, 64, 64)),
    "ResNet-18": (resnet18, (8, 3, 224, 224)),
}
