"""The package around the kernels: what it says of itself, how it fails to start, and what a source distribution and the
compiled kernels contain."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import dlkernels
from dlkernels import _C, _build_info, _torch_version

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd=ROOT, path="", **environment):
    """Python in a process of its own that finds modules in `cwd`, then `path`, then where this one found dlkernels."""
    path = os.pathsep.join([str(path), str(Path(dlkernels.__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=cwd, timeout=100)


def test_python_m():
    result = run("-m", "dlkernels")
    assert result.returncode == 0, result.stderr
    printed = dict(re.split(r"  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert printed == dlkernels.info() | {"threads": printed["threads"]}
    assert printed["torch running"] == torch.__version__ and printed["torch built with"] == _build_info.TORCH
    assert printed["instruction set"].startswith(f"{_C.isa()} (available: baseline")
    assert printed["dlkernels"] == dlkernels.__version__


# ---- A torch that is not the one built with


def refusal():
    with pytest.raises(ImportError) as caught:
        _torch_version.check()
    message = str(caught.value)
    assert "\n" not in message and "pip install --no-build-isolation" in message
    return message


@pytest.mark.parametrize("built, running", [("2.6.0", "2.13.0+cpu"), ("2.13.0+cpu", "2.13.1"), ("2.13.0", "2.13.0a0")])
def test_another_torch(monkeypatch, built, running):
    monkeypatch.setattr(_build_info, "TORCH", built)
    monkeypatch.setattr(torch, "__version__", running)
    assert f"torch {built}," in refusal() and f"torch {running} " in refusal()


def test_the_same_torch_for_another_device(monkeypatch):
    monkeypatch.setattr(_build_info, "TORCH", "2.13.0+cpu")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    _torch_version.check()


@pytest.mark.parametrize("missing", ["_build_info", "_C"])
def test_not_built(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, f"dlkernels.{missing}", None)
    assert "not built here" in refusal()


def test_source_folder_that_is_not_built(tmp_path):
    """What importing the package from a fresh clone says. (An editable install would lend it the files it lacks.)"""
    shutil.copytree(ROOT / "dlkernels", tmp_path / "dlkernels", ignore=shutil.ignore_patterns("*.so", "_build_info.py"))
    program = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in f.__module__]"
    result = run("-c", f"{program}; import dlkernels", cwd=tmp_path)
    assert result.stderr.splitlines()[-1].startswith("ImportError: dlkernels is not built here")


# ---- Instruction sets

PROGRAM = """
import sys, torch, dlkernels
torch.manual_seed(0)
model = dlkernels.convert(torch.nn.Sequential(
    torch.nn.Conv2d(3, 20, 3), torch.nn.BatchNorm2d(20), torch.nn.GELU(), torch.nn.MaxPool2d(2), torch.nn.Dropout(0.3),
    torch.nn.Flatten(), torch.nn.Linear(500, 7), torch.nn.LogSoftmax(1)))
y = model(torch.randn(4, 3, 13, 13))
y.square().mean().backward()
torch.save([dlkernels._C.isa(), y.detach(), [p.grad for p in model.parameters()]], sys.argv[1])
"""


def results_of(folder, isa):
    result = run("-c", PROGRAM, folder / "result", DLKERNELS_ISA=isa)
    assert result.returncode == 0, result.stderr
    return torch.load(folder / "result")


@pytest.fixture(scope="module")
def default_results(tmp_path_factory):
    return results_of(tmp_path_factory.mktemp("default"), "")


@pytest.mark.parametrize("isa", _C.available_isas())
def test_each_instruction_set(isa, tmp_path, default_results):
    results = results_of(tmp_path, isa)
    assert results[0] == isa
    torch.testing.assert_close(results[1:], default_results[1:])


def test_unknown_instruction_set():
    result = run("-c", "import dlkernels", DLKERNELS_ISA="nonsense")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.search("DLKERNELS_ISA=nonsense is not available here; choose from: .*baseline", last)


# ---- Building

BLOCK_TORCH = """
import sys
class NoTorch:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("no torch here")
sys.meta_path.insert(0, NoTorch)
"""


def test_setup_without_torch(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TORCH)
    arguments = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "temp"]
    result = run("setup.py", "-q", "build_ext", *arguments, path=tmp_path, DLKERNELS_BUILD_DIR=str(tmp_path))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("dlkernels: building needs torch") and "pip install --no-build-isolation ." in last


def test_source_distribution(tmp_path):
    """It has all that a build and the tests need, and nothing that a build wrote; making it needs no torch."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info", "shared", "demo-output")
    shutil.copytree(ROOT, source, ignore=ignored)
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TORCH)
    result = run("setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=source, path=tmp_path)
    assert result.returncode == 0, result.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    folders = [ROOT / name for name in ("benchmarks", "csrc", "dlkernels", "docs", "examples", "tests")]
    needed = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cpp", ".py", ".txt")]
    needed = {str(path.relative_to(ROOT)) for path in needed} - {"dlkernels/_build_info.py"}
    needed |= {"CMakeLists.txt", "Makefile", "pyproject.toml", "setup.py"}
    assert len(needed) > 80 and needed <= packed
    assert not [name for name in packed if re.search(r"_build_info|\.so$|\.pyc$", name)]


@pytest.mark.parametrize("folder", ["core", "cpu"])
def test_torch_stops_at_the_bindings(folder):
    files = list((ROOT / "csrc" / folder).glob("*"))
    assert len(files) > 5
    for file in files:
        includes = re.findall(r'^\s*#\s*include\s*[<"](.*)[>"]', file.read_text(), re.MULTILINE)
        foreign = [name for name in includes if "/" in name and not name.startswith(("csrc/core/", f"csrc/{folder}/"))]
        assert not foreign, file


def kernel_objects():
    """The compiled kernels of each instruction set, from the build folder that made the extension."""
    builds = [Path(os.environ.get("DLKERNELS_BUILD_DIR", "")), *(ROOT / "build").glob("*")]
    builds = [build for build in builds if "sanitize" not in build.name]  # the sanitizers add symbols
    return [path for build in builds for path in build.glob("CMakeFiles/dlk_cpu_*.dir/csrc/cpu/*.o")]


@pytest.mark.skipif(not shutil.which("nm") or not kernel_objects(), reason="needs nm and the build folder")
def test_kernels_share_no_symbols_between_instruction_sets():
    """The linker keeps one of several weak functions of a name: the AVX-512 one could end up in the AVX2 path."""
    for path in kernel_objects():
        isa = re.search(r"dlk_cpu_(\w+)\.dir", str(path))[1]
        lines = subprocess.run(["nm", "-C", "--defined-only", path], capture_output=True, text=True, check=True).stdout
        weak = [line.split(maxsplit=2)[2] for line in lines.splitlines() if re.match(r"[0-9a-f]+ [WVu] ", line)]
        assert not [name for name in weak if f"dlk::cpu::{isa}::" not in name], path
