"""examples/train_cnn.py: the table, the plot, exit statuses, equal starts and equal losses, reading of IDX files."""

import gzip
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import image_data  # noqa: E402
import train_cnn  # noqa: E402

# Python gives up its KeyboardInterrupt where the parent ignores SIGINT, as shells make background jobs do.
RUN_WITH_SIGINT = (
    "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    f"sys.path.insert(0, {str(EXAMPLES)!r}); runpy.run_path({str(EXAMPLES / 'train_cnn.py')!r}, run_name='__main__')"
)


def write_idx(path, sizes, data, kind=8):
    path.write_bytes(gzip.compress(bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + data))


def digit_contenders(dropout, steps):
    torch.manual_seed(0)
    return train_cnn.make_contenders(train_cnn.make_cnn(dropout), steps)


def test_table_and_plot(tmp_path, capsys):
    assert train_cnn.main(["--epochs", "1", "--limit", "128", "--output", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^after 1 epoch +torch\.nn +dlkernels$", output, re.M)
    assert re.search(r"^test accuracy +\d+\.\d\d% +\d+\.\d\d%  difference [+-]\d+\.\d\d points$", output, re.M)
    assert re.search(r"^median time per epoch +\d+\.\d\d s +\d+\.\d\d s  median ratio \d+\.\d\d$", output, re.M)
    theirs, ours = re.search(r"^saved for backward +(\S+) MB +(\S+) MB ", output, re.M).groups()
    assert 0 < float(ours) < float(theirs)
    assert int(re.search(r"^calls of kernels: (\d+), of PyTorch in their place: 0$", output, re.M).group(1)) > 0
    picture = tmp_path / "digits.png"
    assert f"curves: {picture}" in output
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_both_start_from_the_same_weights_and_lose_the_same():
    torch_nn, ours = digit_contenders(dropout=0.0, steps=100)
    for name, value in torch_nn.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
    data = image_data.load("digits")
    batches = train_cnn.shuffled_batches(len(data.train_labels), 64, seed=0)[:6]
    losses = [
        [contender.train_step(data.train_images[batch], data.train_labels[batch]) for batch in batches]
        for contender in (torch_nn, ours)
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-6, atol=0)
    assert losses[0][-1] < losses[0][0]


def test_bytes_saved_counts_each_storage_once_and_no_parameters():
    lines = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10, bias=False), torch.nn.ReLU())
    contender = train_cnn.Contender("sum", lines, lambda y, labels: y.sum(), steps=1)
    images = torch.randn(5, 1, 28, 28)
    # The images, a view of which the linear layer saves; the output of the ReLU.
    assert contender.bytes_saved(images, None) == 4 * (5 * 784 + 5 * 10)


def test_turns_alternate_on_the_same_batches(monkeypatch):
    turns = []

    def train_epoch(self, data, batches, after_step):
        turns.append((self.name, torch.cat(batches).tolist()))
        return 1.0, 1.0

    monkeypatch.setattr(train_cnn.Contender, "train_epoch", train_epoch)
    train_cnn.train(digit_contenders(0.0, 4), image_data.load("digits").limited(20), epochs=3, batch_size=8, seed=0)
    assert [name for name, _ in turns] == ["torch.nn", "dlkernels", "dlkernels", "torch.nn", "torch.nn", "dlkernels"]
    orders = [order for _, order in turns]
    assert orders[0::2] == orders[1::2]
    assert sorted(orders[0]) == list(range(20)) and orders[0] != orders[2]


@pytest.mark.parametrize("epoch, finished", [(1, False), (3, True)])
def test_ctrl_c(tmp_path, epoch, finished):
    command = [sys.executable, "-c", RUN_WITH_SIGINT, "--epochs", "500", "--limit", "640", "--output", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        errors = b""
        while f"epoch {epoch}/500".encode() not in errors:
            read = process.stderr.read1()
            assert read, errors.decode()
            errors += read
        process.send_signal(2)
        output, rest = process.communicate(timeout=60)
    errors = (errors + rest).decode()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "interrupted" in errors
    assert bool(re.search(r"^after \d+ epochs? ", output.decode(), re.M)) == finished
    assert (tmp_path / "digits.png").exists() == finished


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    for part, n in (("train", 3), ("t10k", 2)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", (n, 28, 28), bytes(i % 251 for i in range(n * 784)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", (n,), bytes(range(n)))
    raw = image_data.load_fashion_mnist(tmp_path)
    assert raw.train_images.shape == (3, 1, 28, 28) and raw.test_images.shape == (2, 1, 28, 28)
    assert raw.train_images.flatten().tolist() == [i % 251 for i in range(3 * 784)]
    assert raw.train_labels.tolist() == [0, 1, 2] and raw.test_labels.tolist() == [0, 1]
    data = image_data.load("fashion-mnist", tmp_path)
    assert data.train_images.mean().abs() < 1e-5 and (data.train_images.std() - 1).abs() < 1e-5


# Compressed in the test: gzip writes the time into what it makes, and the tests' names would differ between pytest's
# processes.
@pytest.mark.parametrize(
    "content, message",
    [
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an IDX file of bytes"),
        (b"\0\0\x08\x02\0\0\0\x01", "ends within its header"),
        (b"\0\0\x08\x01\0\0\0\x03\1\2", r"need 3 bytes, found 2"),
    ],
)
def test_damaged_idx_file(tmp_path, content, message):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(image_data.DataError, match=message):
        image_data.read_idx(path)


def test_idx_file_that_is_not_gzip(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(b"not gzip")
    with pytest.raises(image_data.DataError, match="not a complete gzip file"):
        image_data.read_idx(path)


def test_missing_data_says_what_to_do(tmp_path, capsys):
    assert train_cnn.main(["--data", "fashion-mnist", "--data-dir", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "apt-get install dataset-fashion-mnist" in message and "--data-dir" in message and "train-images" in message
