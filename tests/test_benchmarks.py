"""The benchmark suite: its check notices wrong kernels, its statistics, memory figures and tables are right, and the
README shows what the committed results say. No timings are asserted."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dlkernels.functional as DF

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import harness  # noqa: E402
import memory  # noqa: E402
import report  # noqa: E402
import results as run_results  # noqa: E402
import tables  # noqa: E402
import targets  # noqa: E402
from machine import Roofline  # noqa: E402


def relu_case(**options):
    return harness.Case("relu 5x7", lambda library, x: library.relu(x), ((5, 7),), **options)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return DF.relu(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, dy):
        return dy


# ---- The check


def test_right_kernels_pass():
    harness.check(harness.Prepared(relu_case()))
    harness.check(harness.Prepared(relu_case(flops=1e12)))  # where float64 would be dear


@pytest.mark.parametrize("flops", [0, 1e12])
@pytest.mark.parametrize(
    "relu",
    [
        pytest.param(lambda x: DF.relu(x) * (1 + 1e-3), id="value"),
        pytest.param(lambda x: DF.relu(x) * float("nan"), id="NaN"),
        pytest.param(lambda x: DF.relu(x)[:-1], id="shape"),
        pytest.param(WrongGradient.apply, id="gradient"),
    ],
)
def test_a_wrong_kernel_is_noticed(relu, flops):
    with pytest.raises(harness.ResultError, match="^relu 5x7: "):
        harness.check(harness.Prepared(relu_case(flops=flops)), types.SimpleNamespace(relu=relu))


def test_a_fallback_is_noticed():
    case = harness.Case("relu", lambda library, x: library.relu(x.bfloat16()).float(), ((5, 7),))
    with pytest.raises(harness.ResultError, match="PyTorch ran in place of a kernel"):
        harness.check(harness.Prepared(case))


@pytest.mark.parametrize("function", ["dropout", "dropout2d"])
def test_dropout_is_checked_by_what_it_must_satisfy(function):
    import bench_dropout

    case = bench_dropout.dropout((8, 64, 6, 6), function=function)
    prepared = harness.Prepared(case)
    harness.check(prepared)
    for wrong in (lambda x, *_: x, lambda x, *_: F.dropout(x, 0.4) * 1.2, lambda x, *_: F.dropout(x, 0.5) * 1.1):
        with pytest.raises(harness.ResultError):
            case.verify(prepared, prepared.results(types.SimpleNamespace(**{function: wrong})))


# ---- Measuring


class FakeBenchmark:
    """What `take_turns` uses of pytest-benchmark's fixture."""

    def __init__(self):
        self.stats = types.SimpleNamespace(iterations=None)

    def pedantic(self, target, args, setup, rounds):
        for _ in range(rounds):
            setup()
            target(*args)


def test_turns_alternate_and_fit_the_budget():
    calls = []

    def run(name, seconds):
        return lambda loops: (calls.append((name, loops)), (seconds,))[1]

    benchmark = FakeBenchmark()
    samples = harness.take_turns(benchmark, {"torch": run("torch", 1e-3), "ours": run("ours", 5e-5)}, budget=0.0841)
    assert benchmark.stats.iterations == 4  # 0.2 ms / 50 us
    rounds = calls[4:]  # after warming up twice each
    assert rounds[:4] == [("torch", 4), ("ours", 4)] * 2
    assert len(rounds) == 2 * 20  # 84.1 ms of 4 * 1.05 ms
    assert samples == {"torch": [(1e-3,)] * 20, "ours": [(5e-5,)] * 20}
    harness.take_turns(benchmark, {"ours": run("ours", 0.03)}, budget=0, least=2, sample_seconds=0.1)
    assert calls[-2:] == [("ours", 4)] * 2  # 100 ms / 30 ms


def test_statistics():
    numbers = harness.compare({"torch": [4.0, 6.0, 2.0], "ours": [1.0, 2.0, 4.0]})
    assert (numbers["torch"], numbers["ours"], numbers["ratio"], numbers["rounds"]) == (4, 2, 2, 3)
    assert numbers["p20"] == pytest.approx(0.5 + 0.4 * 2.5) and numbers["p80"] == pytest.approx(3 + 0.6)
    assert [harness.percentile([3, 1, 2], p) for p in (0, 50, 75, 100)] == [1, 2, 2.5, 3]
    assert run_results.geometric_mean([0.5, 8]) == pytest.approx(2)


def test_work_and_roofline():
    case = harness.Case("matmul", lambda lib, a, b: lib.matmul(a, b), ((4, 8), (8, 2)), flops=2 * 4 * 8 * 2)
    prepared = harness.Prepared(case)
    a, b, y = 4 * 4 * 8, 4 * 8 * 2, 4 * 4 * 2
    assert harness.work(prepared, "forward") == (128, a + b + y)
    assert harness.work(prepared, "input grad") == (128, y + a + (a + b))
    assert harness.work(prepared, "backward") == (256, y + (a + b) + (a + b))
    assert harness.work(prepared, "both") == (384, 3 * (a + b) + 2 * y)
    roof = Roofline(1, flops=100.0, copy=[(10, 50.0), (1000, 10.0)])
    assert [roof.bandwidth(size) for size in (1, 10, 100, 1000, 5000)] == pytest.approx([50, 50, 30, 10, 10])
    assert roof.seconds(200, 100) == pytest.approx(100 / 30) and roof.seconds(2000, 100) == 20


def test_bytes_saved_and_peak():
    x = torch.randn(1 << 20, requires_grad=True)
    weight = torch.randn(1 << 20, requires_grad=True)
    assert memory.bytes_saved(lambda: (x * weight * 2).sum().backward(), kept_anyway=[weight]) == x.nbytes
    if (rise := memory.peak(lambda: torch.ones(1 << 23))) is not None:
        assert 32e6 < rise < 40e6


# ---- The report


def row(op, case, phase, torch_seconds, our_seconds, **more):
    ratio = torch_seconds / our_seconds
    numbers = {"torch": torch_seconds, "ours": our_seconds, "ratio": ratio, "p20": ratio, "p80": ratio, "rounds": 9}
    return {"op": op, "case": case, "phase": phase, "threads": 1, "flops": 0, "bytes": 8, "share": 0.5} | numbers | more


def test_tables():
    rows = [
        row("relu", "relu 64", "forward", 2.0, 1.0),
        row("relu", "relu 64", "backward", 0.97, 1.0),
        row("relu", "relu 9", "forward", 0.5, 1.0),
        row("relu", "relu 64", "both", 9.0, 1.0),
        row("chain", "chain", "backward", 0.1, 1.0),
    ]
    results = {"rows": rows}
    *_, relu, everything = tables.summary(results).splitlines()
    assert relu == "| relu | 2 | 1.00 | 0.97 | **0.50 ▼** | 2 of 3 | 1 of 3 |"
    assert "0.10" not in tables.summary({"rows": rows[-1:]})  # nothing but the chain: no op to sum up
    assert everything == relu.replace("relu", "**all**")
    lines = tables.op(rows[:4]).splitlines()[2:]
    assert lines[0].startswith("| relu 64 | 1 | 2e+03 ms → 1 s | 2.00 (2.00-2.00) |".replace("2e+03 ms", "2 s"))
    assert "0.97 ▽ (0.97-0.97)" in lines[0] and lines[1].startswith("| relu 9 | 1 |")


def test_targets_name_cases_that_exist():
    names = [
        (case.name, phase)
        for path in (ROOT / "benchmarks").glob("bench_*.py")
        for case in getattr(__import__(path.stem), "CASES", [])
        for phase in case.phases
    ]
    phases = {"forward": ["forward"], "training": ["both", "backward"]}
    rows = [{"case": n, "phase": p, "threads": t} for n, of in names for p in phases.get(of, [of]) for t in (1, 2)]
    assert len(names) == len(set(names)), "two cases have one name"
    for target in targets.TARGETS:
        assert target.rows(rows), f"no case is named as in {target}"


def test_a_run_ends_in_a_report(tmp_path, monkeypatch):
    """The whole way on one small case: pytest-benchmark, its JSON, the report."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # where it is set, pytest-benchmark measures nothing
    run = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks/bench_softmax.py"]
    options = ["-k", "softmax and 128x10 and not log", "--threads", "1", "--budget", "0", "--benchmark-json", run]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    report.main(["make", str(run), str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert [r["phase"] for r in results["rows"]] == ["forward", "both", "backward"]
    assert "| softmax 128x10 | 1 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "ratios.png").exists() and (tmp_path / "roofline.png").exists()


def test_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text()
    results = run_results.load(report.PUBLISHED / "results.json")
    assert report.with_section(readme, report.readme_section(results)) == readme, "run `make bench-report`"
    assert (report.PUBLISHED / "report.md").read_text() == report.report(results), "run `make bench-report`"
