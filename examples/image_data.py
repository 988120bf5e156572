"""Real images of size 28 x 28 in ten classes, as tensors: scikit-learn's handwritten digits, and Fashion-MNIST."""

import dataclasses
import gzip
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
SIZE = 28


class DataError(Exception):
    """Data is missing or damaged; the message says what to do about it."""


@dataclasses.dataclass
class ImageData:
    """Images (N, 1, 28, 28) in float32, scaled to mean 0 and variance 1 over the training set; labels (N,) in int64."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor

    def limited(self, n):
        """The first `n` images of each set."""
        return ImageData(self.train_images[:n], self.train_labels[:n], self.test_images[:n], self.test_labels[:n])


def load(name, folder=None):
    """The data set `name`, "digits" or "fashion-mnist"; the latter from `folder` if given. DataError if missing."""
    raw = load_digits() if name == "digits" else load_fashion_mnist(folder or FASHION_MNIST_DIR)
    mean, std = raw.train_images.mean(), raw.train_images.std()
    return dataclasses.replace(
        raw, train_images=(raw.train_images - mean) / std, test_images=(raw.test_images - mean) / std
    )


def load_digits():
    """scikit-learn's 1797 digits of 8 x 8, enlarged; a third of them, always the same, are for testing."""
    from sklearn import datasets

    digits = datasets.load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1)
    images = F.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(labels) // 3], order[len(labels) // 3 :]
    return ImageData(images[train], labels[train], images[test], labels[test])


def load_fashion_mnist(folder):
    """Zalando's 60,000 training and 10,000 test images of clothes, from the four files of `folder`."""
    files = {
        part: Path(folder) / f"{part}.gz"
        for part in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    }
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"Fashion-MNIST: {folder} lacks {', '.join(missing)}. Install Debian's package with "
            "'apt-get install dataset-fashion-mnist', or name the folder that holds the files with --data-dir."
        )
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in files.values())
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.shape[1:] != (SIZE, SIZE) or labels.shape != images.shape[:1]:
            raise DataError(
                f"Fashion-MNIST: {folder} holds images of shape {tuple(images.shape)} and labels of shape "
                f"{tuple(labels.shape)}; expected (N, {SIZE}, {SIZE}) and (N,)."
            )
    return ImageData(
        train_images.unsqueeze(1).float(), train_labels.long(), test_images.unsqueeze(1).float(), test_labels.long()
    )


def read_idx(path):
    """The uint8 tensor in a gzipped IDX file: two zeros, the type (8: uint8), the rank, then big-endian sizes, data."""
    try:
        content = gzip.decompress(Path(path).read_bytes())
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a complete gzip file ({error}).") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of bytes, which starts with 00 00 08; got {content[:3].hex(' ')}.")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(f"{path}: ends within its header.")
    sizes = struct.unpack(f">{content[3]}I", content[4:header])
    data = torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8) if len(content) > header else torch.empty(0)
    if data.numel() != torch.Size(sizes).numel():
        raise DataError(f"{path}: sizes {sizes} need {torch.Size(sizes).numel()} bytes, found {data.numel()}.")
    return data.to(torch.uint8).view(sizes)
