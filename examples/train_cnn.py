"""Trains one CNN twice from the same weights, on torch.nn and on dlkernels, and compares accuracy, time and memory.

python examples/train_cnn.py                            # handwritten digits of scikit-learn
python examples/train_cnn.py --data fashion-mnist

The two take turns, epoch by epoch, on the same batches in the same order, and whoever went second goes first in the
next epoch, so that a machine that slows down or speeds up does so for both. Only dropout's masks differ: each library
draws its own.
"""

import argparse
import copy
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import image_data
import torch
from torch import nn
from tqdm import tqdm

import dlkernels

DEFAULT_EPOCHS = {"digits": 20, "fashion-mnist": 3}
PEAK_LEARNING_RATE = 0.02
EVALUATION_BATCH = 500
INTERRUPTED = 130  # the exit status of a program that Ctrl-C ends


def make_cnn(dropout=0.25):
    """A small image classifier for (N, 1, 28, 28): logits of ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(dropout),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Dropout(2 * dropout),
        nn.Linear(128, 10),
    )


@dataclasses.dataclass
class Epoch:
    loss: float  # mean over the training set
    accuracy: float  # on the test set
    seconds: float  # of training alone


class Contender:
    """One of the two: its model, loss, optimizer, and what it has achieved so far."""

    def __init__(self, name, model, loss, steps):
        self.name = name
        self.model = model
        self.loss = loss
        self.optimizer = torch.optim.SGD(model.parameters(), lr=PEAK_LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, PEAK_LEARNING_RATE, total_steps=steps)
        self.epochs = []

    def train_step(self, images, labels):
        """Forward, backward, update; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def train_epoch(self, data, batches, after_step):
        """One pass over the training set; returns the mean loss and the seconds it took."""
        self.model.train()
        total = 0.0
        start = time.perf_counter()
        for batch in batches:
            loss = self.train_step(data.train_images[batch], data.train_labels[batch])
            total += loss * len(batch)
            after_step(loss)
        return total / sum(map(len, batches)), time.perf_counter() - start

    @torch.no_grad()
    def test_accuracy(self, data):
        self.model.eval()
        predicted = [self.model(images).argmax(1) for images in data.test_images.split(EVALUATION_BATCH)]
        return (torch.cat(predicted) == data.test_labels).float().mean().item()

    def bytes_saved(self, images, labels):
        """Bytes that one training step keeps from forward to backward: each storage once, no parameters or buffers."""
        model = copy.deepcopy(self.model).train()
        kept_anyway = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
        saved = {}

        def pack(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in kept_anyway:
                saved[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            self.loss(model(images), labels).backward()
        return sum(saved.values())


def make_contenders(model, steps):
    """torch.nn and dlkernels with the weights of `model`, each with an optimizer for that many steps."""
    return [
        Contender("torch.nn", model, nn.CrossEntropyLoss(), steps),
        Contender("dlkernels", dlkernels.convert(copy.deepcopy(model)), dlkernels.nn.CrossEntropyLoss(), steps),
    ]


def shuffled_batches(n, batch_size, seed):
    """The indices 0 to n - 1 in random order, in batches. A last batch of one, which batch norm refuses, is dropped."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [batch for batch in order.split(batch_size) if len(batch) > 1]


def train(contenders, data, epochs, batch_size, seed):
    """Trains all contenders in turns, under a progress bar; their results are in `contender.epochs`, also if this is
    interrupted."""
    n = len(data.train_labels)
    steps = len(shuffled_batches(n, batch_size, seed)) * epochs * len(contenders)
    with tqdm(total=steps, unit="step", dynamic_ncols=True) as progress:
        for epoch in range(epochs):
            batches = shuffled_batches(n, batch_size, seed=seed * 1000 + epoch)
            for contender in contenders if epoch % 2 == 0 else reversed(contenders):
                title = f"epoch {epoch + 1}/{epochs} {contender.name:9}"

                def after_step(loss, title=title):
                    progress.set_description(f"{title} loss {loss:.4f}", refresh=False)
                    progress.update()

                loss, seconds = contender.train_epoch(data, batches, after_step)
                contender.epochs.append(Epoch(loss, contender.test_accuracy(data), seconds))


def common_epochs(contenders):
    """How many epochs all of them have finished."""
    return min(len(c.epochs) for c in contenders)


def time_ratios(contenders):
    """Per epoch, PyTorch's seconds over ours."""
    torch_nn, ours = contenders
    return [theirs.seconds / mine.seconds for theirs, mine in zip(torch_nn.epochs, ours.epochs)]


def table(contenders, saved):
    """The results over the epochs that both have finished, as text. `saved`: bytes, one number per contender."""
    done = common_epochs(contenders)
    torch_nn, ours = contenders
    accuracy = [c.epochs[done - 1].accuracy for c in contenders]
    seconds = [statistics.median(e.seconds for e in c.epochs[:done]) for c in contenders]
    rows = [
        (f"after {done} epoch{'s' * (done > 1)}", torch_nn.name, ours.name, ""),
        (
            "test accuracy",
            *(f"{a:.2%}" for a in accuracy),
            f"difference {100 * (accuracy[1] - accuracy[0]):+.2f} points",
        ),
        (
            "median time per epoch",
            *(f"{s:.2f} s" for s in seconds),
            f"median ratio {statistics.median(time_ratios(contenders)):.2f}",
        ),
        ("saved for backward", *(f"{b / 1e6:.2f} MB" for b in saved), f"ratio {saved[0] / saved[1]:.2f}"),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = (
        [f"{row[0]:{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:3], widths[1:])), row[3]] for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def plot(contenders, title, path):
    """Curves of loss and accuracy and the time ratio per epoch, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    done = common_epochs(contenders)
    numbers = range(1, done + 1)
    ratios = time_ratios(contenders)
    figure, (loss, accuracy, ratio) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    figure.suptitle(title)
    # The two nearly coincide: a wide line under a thin dashed one shows both.
    for contender, style in zip(contenders, ({"linewidth": 4, "alpha": 0.4}, {"linewidth": 1.5, "linestyle": "--"})):
        epochs = contender.epochs[:done]
        loss.plot(numbers, [e.loss for e in epochs], marker=".", label=contender.name, **style)
        accuracy.plot(numbers, [100 * e.accuracy for e in epochs], marker=".", label=contender.name, **style)
    ratio.bar(numbers, ratios, color="tab:green", alpha=0.6)
    ratio.axhline(1, color="black", linewidth=1)
    ratio.axhline(statistics.median(ratios), color="tab:green", label=f"median {statistics.median(ratios):.2f}")
    loss.set(title="training loss", xlabel="epoch", yscale="log")
    accuracy.set(title="test accuracy, %", xlabel="epoch")
    ratio.set(title="time of torch.nn / time of dlkernels", xlabel="epoch")
    for axes in (loss, accuracy, ratio):
        axes.legend()
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(arguments):
    def at_least(least):
        def integer(text):
            if int(text) < least:
                raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
            return int(text)

        return integer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DEFAULT_EPOCHS, default="digits")
    parser.add_argument("--data-dir", type=Path, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--epochs", type=at_least(1), help="default: 20 for digits, 3 for fashion-mnist")
    parser.add_argument("--batch-size", type=at_least(2), default=64)
    parser.add_argument("--threads", type=at_least(1), help="default: PyTorch's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and dropout")
    parser.add_argument("--limit", type=at_least(2), help="only this many training and test images")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for the plot")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Runs the comparison; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        data = image_data.load(options.data, options.data_dir)
    except image_data.DataError as error:
        print(error, file=sys.stderr)
        return 1
    if options.limit:
        data = data.limited(options.limit)
    if options.threads:
        torch.set_num_threads(options.threads)
    epochs = options.epochs or DEFAULT_EPOCHS[options.data]
    instruction_set = dlkernels.info()["instruction set"].split()[0]
    title = (
        f"{options.data}: {len(data.train_labels)} training and {len(data.test_labels)} test images, batches of "
        f"{options.batch_size}, threads: {torch.get_num_threads()}, {instruction_set}"
    )
    print(title, flush=True)

    torch.manual_seed(options.seed)
    dlkernels.reset_counts()
    batches = shuffled_batches(len(data.train_labels), options.batch_size, options.seed)
    contenders = make_contenders(make_cnn(), epochs * len(batches))
    saved = [c.bytes_saved(data.train_images[batches[0]], data.train_labels[batches[0]]) for c in contenders]
    try:
        train(contenders, data, epochs, options.batch_size, options.seed)
        status = 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = INTERRUPTED
    if common_epochs(contenders) == 0:
        return status

    print(table(contenders, saved))
    counts = dlkernels.counts()
    assert not any(count["fallback"] for count in counts.values()), f"PyTorch ran in place of a kernel: {counts}"
    print(f"calls of kernels: {sum(count['kernel'] for count in counts.values())}, of PyTorch in their place: 0")
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / f"{options.data}.png"
    plot(contenders, title, picture)
    print(f"curves: {picture}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
