"""benchmarks/gpu_check.sh and .py, as far as they run without a GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlkernels

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu_check():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_check", BENCHMARKS / "gpu_check.py")
    module = sys.modules["gpu_check"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def test_plan_names_the_steps():
    result = run("bash", BENCHMARKS / "gpu_check.sh", "--plan")
    steps = [line.split()[0] for line in result.stdout.splitlines()]
    assert steps == ["tools", "build", "check", "times", "tests", "memcheck", "racecheck"]
    assert result.returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_stops_with_a_line():
    result = run("env", f"PYTHON={sys.executable}", "bash", BENCHMARKS / "gpu_check.sh")
    assert result.returncode == 2
    assert "has no torch that sees a GPU" in result.stderr


def test_small_cases_agree_with_pytorch(backend, gpu_check):
    if not dlkernels._C.use_simt(backend == "simt"):
        pytest.skip("built without csrc/simt")
    result = run(sys.executable, BENCHMARKS / "gpu_check.py", "--device", "simt")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + sum(len(case.dtypes) for case in gpu_check.CASES)


def test_a_wrong_result_is_noticed(gpu_check):
    right = [torch.randn(5, 7), torch.randn(3)]
    wrong = [right[0], right[1].clone()]
    wrong[1][2] += 0.5
    assert gpu_check.largest_difference(right, right) == 0
    assert gpu_check.largest_difference(wrong, right) > gpu_check.tolerance(torch.float16)
    nan = gpu_check.largest_difference([right[0] * float("nan"), right[1]], right)
    assert not nan <= gpu_check.tolerance(torch.bfloat16)


def test_the_table_has_a_line_per_row(gpu_check, capsys):
    gpu_check.print_table([{"case": "a", "ratio": 1.2345}, {"case": "bcd", "ratio": None}])
    assert capsys.readouterr().out == "| case | ratio |\n| ---- | ----- |\n| a    | 1.23  |\n| bcd  | -     |\n"
