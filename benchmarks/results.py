"""The results of a run, a dict of date, commit, machine and rows: taken from what pytest-benchmark wrote, and kept."""

import json
import math
import statistics

FORWARD, BACKWARD = ("forward",), ("backward", "input grad", "weight grad")
WHOLE = ("model", "chain")  # what is no single op
LOSS, CLEAR_LOSS = 1.0, 0.95
DIGITS = 4


def collect(run):
    """The results in the JSON of pytest-benchmark."""
    commit = run["commit_info"]
    rows = [row for test in run["benchmarks"] for row in test["extra_info"].get("rows", [])]
    return {
        "date": run["datetime"][:10],
        "commit": commit["id"][:12] + " (with changes)" * commit["dirty"],
        "selection": run["selection"],
        "machine": run["machine_info"],
        "rows": [{key: _rounded(value) for key, value in row.items()} for row in rows],
    }


def _rounded(value):
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def save(results, path):
    """As JSON with a line per row, for readable diffs."""
    head = json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    path.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n')


def load(path):
    return json.loads(path.read_text())


def thread_counts(results):
    return sorted({row["threads"] for row in results["rows"]})


def single_ops(rows):
    return [row for row in rows if row["op"] not in WHOLE]


def passes(rows, phases):
    """Rows of single ops in these phases. Never "both", which would count forward and backward twice."""
    return [row for row in single_ops(rows) if row["phase"] in phases]


def geometric_mean(values):
    return math.exp(statistics.fmean(map(math.log, values)))
