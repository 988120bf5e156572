"""From what pytest-benchmark wrote to what people read.

    python benchmarks/report.py RUN.json FOLDER    results.json, report.md and pictures, from a run of the suite
    python benchmarks/report.py --publish FOLDER   copies FOLDER to docs/benchmarks and renews the README's section

results.json has all that the rest is made of, a line per measurement, so that a committed one can be read again.
"""

import argparse
import json
from pathlib import Path

from harness import geometric_mean
from targets import BACKWARD, FORWARD, TARGETS

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- made by `make bench-report` -->", "<!-- end of what `make bench-report` made -->"
LOSS, CLEAR_LOSS = 1.0, 0.95
WHOLE = ("model", "chain")  # what is no single op


# ---- Results


def collect(run):
    """The results of a run of pytest-benchmark, as a dict."""
    rows = [row for test in run["benchmarks"] for row in test["extra_info"].get("rows", [])]
    return {
        "date": run["datetime"][:10],
        "commit": run["commit_info"]["id"][:12] + ("+changes" if run["commit_info"]["dirty"] else ""),
        "machine": run["machine_info"],
        "rows": [{key: rounded(value) for key, value in row.items()} for row in rows],
    }


def rounded(value, digits=4):
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def write_results(results, path):
    """As JSON with a line per row."""
    head = json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    path.write_text(f'{head[:-2]},\n "rows": [\n{rows}\n]}}\n')


def single_ops(rows):
    return [row for row in rows if row["op"] not in WHOLE]


def passes(rows, phases):
    """Rows of single ops in these phases. "both" is never among them: it would count forward and backward twice."""
    return [row for row in single_ops(rows) if row["phase"] in phases]


def mean_ratio(rows):
    return f"{geometric_mean(row['ratio'] for row in rows):.2f}" if rows else ""


def thread_counts(results):
    return sorted({row["threads"] for row in results["rows"]})


# ---- Text


def table(header, lines):
    """Markdown; columns after the first are aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def ratio_cell(row, spread=True):
    """The ratio, marked where we lose, with its spread."""
    if row is None:
        return ""
    ratio = f"{row['ratio']:.2f}"
    marked = f"**{ratio} ▼**" if row["ratio"] < CLEAR_LOSS else f"{ratio} ▽" if row["ratio"] < LOSS else ratio
    return f"{marked} ({row['p20']:.2f}-{row['p80']:.2f})" if spread else marked


def duration(seconds):
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def times_cell(row):
    return f"{duration(row['torch'])} → {duration(row['ours'])}" if row else ""


def rate_cell(row):
    """Of ours: GFLOP/s where operations are counted, else GB/s; and the share of the roofline."""
    if row is None:
        return ""
    rate = (
        f"{row['flops'] / row['ours'] / 1e9:.3g} GF/s"
        if row["flops"]
        else f"{row['bytes'] / row['ours'] / 1e9:.3g} GB/s"
    )
    return f"{rate}, {100 * row['share']:.0f} %"


def megabytes_cell(row, kind):
    """PyTorch → ours; empty below a tenth of a megabyte."""
    theirs, ours = (row.get(f"{kind} {name}") if row else None for name in ("torch", "ours"))
    if theirs is None or ours is None or max(theirs, ours) < 1e5:
        return ""
    return f"{theirs / 1e6:.1f} → {ours / 1e6:.1f}"


def op_table(rows):
    """One op: a line per case and number of threads, and per gradient timed alone."""
    lines = {}
    for row in rows:
        alone = row["phase"] if row["phase"] in ("input grad", "weight grad") else ""
        line = lines.setdefault((row["case"], alone, row["threads"]), {})
        line["backward" if alone else row["phase"]] = row
    header = ["case", "threads", "forward", "ratio", "ours", "backward", "ratio", "ours", "both", "saved MB", "peak MB"]
    body = []
    for (case, alone, threads), line in sorted(lines.items(), key=lambda item: order(rows, *item[0])):
        forward, backward, both = (line.get(phase) for phase in ("forward", "backward", "both"))
        body.append(
            [
                f"{case}{', ' if alone else ''}{alone}".replace("->", "→"),
                threads,
                *(cell(row) for row in (forward, backward) for cell in (times_cell, ratio_cell, rate_cell)),
                ratio_cell(both, spread=False),
                megabytes_cell(both, "saved"),
                megabytes_cell(both, "peak"),
            ]
        )
    return table(header, body)


def order(rows, case, alone, threads):
    """Cases as they ran, each with its threads, then its single gradients."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    return names.index(case), alone, threads


def summary_table(results):
    """Per op: geometric means forward and backward for each number of threads, the worst case, and how many lose."""
    counts = thread_counts(results)
    rows = single_ops(results["rows"])
    header = ["op", "cases"]
    header += [f"{name}, {n} thread{'s' * (n > 1)}" for n in counts for name in ("forward", "backward")]
    header += ["worst", f"below {LOSS:.2f}", f"below {CLEAR_LOSS}"]
    names = list(dict.fromkeys(row["op"] for row in rows))
    return table(header, [_summary_line(name, [r for r in rows if r["op"] == name], counts) for name in names]
                 + [_summary_line("**all**", rows, counts)])  # fmt: skip


def _summary_line(name, rows, counts):
    measured = passes(rows, FORWARD + BACKWARD)
    means = [
        mean_ratio([row for row in passes(rows, phases) if row["threads"] == n])
        for n in counts
        for phases in (FORWARD, BACKWARD)
    ]
    worst = min(measured, key=lambda row: row["ratio"])
    losing = [sum(row["ratio"] < limit for row in measured) for limit in (LOSS, CLEAR_LOSS)]
    return [
        name,
        len({row["case"] for row in rows}),
        *means,
        ratio_cell(worst, spread=False),
        *(f"{n} of {len(measured)}" for n in losing),
    ]


def target_table(results):
    """Each target with the worst case that it is about."""
    lines = []
    for target in TARGETS:
        rows = target.rows(single_ops(results["rows"]))
        if not rows:
            lines.append([target.name, f"{target.least:g} {target.unit}", "not measured", "", "", ""])
            continue
        values = sorted((target.value(row), f"{row['case']}, {row['phase']}, {row['threads']}T") for row in rows)
        worst, where = values[0]
        met = "met" if worst >= target.least else "**not met**"
        reached = sum(value >= target.least for value, _ in values)
        lines.append([target.name, f"{target.least:g} {target.unit}", met, f"{reached} of {len(values)}", f"{worst:.2f}",
                      where.replace("->", "→")])  # fmt: skip
    return table(["target", "at least", "", "reached by", "worst", "which"], lines)


def machine_line(results):
    machine = results["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instruction set']}, {caches}, "
        f"{machine['memory GB']} GB; torch {machine['torch']}, dlkernels {machine['dlkernels']} at {results['commit']}, "
        f"{results['date']}"
    )


def roofline_table(results):
    lines = []
    for threads, roof in results["machine"]["roofline"].items():
        copy = ", ".join(f"{speed / 1e9:.0f} at {binary_size(size)}" for size, speed in roof["copy"])
        lines.append([f"{threads} threads".replace("1 threads", "1 thread"), f"{roof['flops'] / 1e9:.0f}", copy])
    return table(["", "FMA peak, GFLOP/s", "copy, GB/s (bytes read + written, by bytes)"], lines)


def binary_size(size):
    return f"{size / 2**20:g} MB" if size >= 2**20 else f"{size / 2**10:g} KB"


METHOD = """\
Ratios are PyTorch's median time over ours: above 1, dlkernels is faster. ▽ marks a loss, ▼ one below 0.95. In parentheses:
20th and 80th percentile of the ratios of the rounds; where these straddle 1, the machine cannot tell the two apart.

Both libraries get the same float32 inputs in the same process and take turns, PyTorch, dlkernels, PyTorch, ..., for at
least 7 rounds, after a check of our results on these inputs against PyTorch's (and float64 where that is cheap). A sample
lasts 0.2 ms at least; shorter calls loop within it. Forward runs under `no_grad`; backward is timed apart in runs of
forward and backward with gradients of all inputs; both is their sum. A time includes freeing what the call returned.

"ours" is our rate and its share of the roofline: the least time in which this machine could do the operations, at its FMA
peak, and move the bytes that cannot be avoided (each input, output and gradient once), at the speed of a copy of as many
bytes, over the time taken. Both ceilings are measured at the start. Winograd does fewer operations than are counted, so
that it can exceed 100 %; so can an op whose inputs stay in cache from the call before. "saved" is what autograd keeps from
forward to backward, weights excluded; "peak" is by how much resident memory rises in one forward and backward.
"""


def report(results):
    """report.md."""
    rows = results["rows"]
    parts = [
        "# Benchmarks",
        machine_line(results) + ".",
        METHOD,
        "## Summary",
        summary_table(results),
        "![ratios](ratios.png)",
        "## Targets",
        target_table(results),
        "## Roofline",
        roofline_table(results),
        "![roofline](roofline.png)",
    ]
    for op in dict.fromkeys(row["op"] for row in single_ops(rows)):
        parts += [f"## {op}", op_table([row for row in rows if row["op"] == op])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def readme_section(results):
    """What stands between the README's markers."""
    measured = passes(results["rows"], FORWARD + BACKWARD)
    losing, clearly = (sum(row["ratio"] < limit for row in measured) for limit in (LOSS, CLEAR_LOSS))
    lines = [
        "Geometric means of PyTorch's time over ours (above 1, dlkernels is faster), and the worst case of each op.",
        summary_table(results),
        "![ratios of all cases](docs/benchmarks/ratios.png)",
        f"Of {len(measured)} comparisons {losing} are below 1.0 and {clearly} below 0.95; "
        "[docs/benchmarks/report.md](docs/benchmarks/report.md) lists every one, how it was measured, and what is still "
        "short of its target.",
        f"Measured on {machine_line(results)}.",
    ]
    return "\n\n".join(lines)


# ---- Commands


def write(results, folder):
    import figures

    folder.mkdir(parents=True, exist_ok=True)
    write_results(results, folder / "results.json")
    (folder / "report.md").write_text(report(results))
    figures.ratios(results, folder / "ratios.png")
    figures.roofline(results, folder / "roofline.png")


def with_section(readme, section):
    """The README with another section between its markers."""
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def publish(folder):
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    write(json.loads((folder / "results.json").read_text()), PUBLISHED)
    readme = ROOT / "README.md"
    results = json.loads((PUBLISHED / "results.json").read_text())
    readme.write_text(with_section(readme.read_text(), readme_section(results)))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the JSON of pytest-benchmark")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args(arguments)
    if options.publish:
        publish(options.folder)
    else:
        write(collect(json.loads(options.run.read_text())), options.folder)
        print(summary_table(json.loads((options.folder / "results.json").read_text())))
        print(f"report: {options.folder / 'report.md'}")


if __name__ == "__main__":
    main()
