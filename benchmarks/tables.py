"""The tables of a report, in Markdown, from its rows: one dict per measurement (see `harness.row`)."""

import math

from results import BACKWARD, CLEAR_LOSS, FORWARD, LOSS, WHOLE, geometric_mean, passes, single_ops, thread_counts
from targets import MODELS, SAVED_MB, TARGETS


def table(header, lines):
    """Columns after the first are aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# ---- Cells


def marked(ratio):
    text = f"{ratio:.2f}"
    return f"**{text} ▼**" if ratio < CLEAR_LOSS else f"{text} ▽" if ratio < LOSS else text


def ratio_cell(row):
    return f"{marked(row['ratio'])} ({row['p20']:.2f}-{row['p80']:.2f})" if row else ""


def compile_cell(row):
    return marked(row["compile"] / row["ours"]) if row and "compile" in row else ""


def duration(seconds):
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def times_cell(row):
    return f"{duration(row['torch'])} → {duration(row['ours'])}" if row else ""


def rate_cell(row):
    """Of ours: GFLOP/s where operations are counted, else GB/s; and the share of the roofline. Of single ops only."""
    if row is None or row["op"] in WHOLE:
        return ""
    work, unit = (row["flops"], "GF/s") if row["flops"] else (row["bytes"], "GB/s")
    return f"{work / row['ours'] / 1e9:.3g} {unit}, {100 * row['share']:.0f} %"


def megabytes_cell(row, kind):
    """PyTorch → ours; empty below a tenth of a megabyte."""
    theirs, ours = (row.get(f"{kind} {name}") if row else None for name in ("torch", "ours"))
    if theirs is None or ours is None or max(theirs, ours) < 1e5:
        return ""
    return f"{theirs / 1e6:.1f} → {ours / 1e6:.1f}"


def arrows(name):
    return name.replace("->", "→")


def verdict(met):
    return "met" if met else "**not met**"


def binary_size(size):
    return f"{size / 2**20:g} MB" if size >= 2**20 else f"{size / 2**10:g} KB"


# ---- Tables


def summary(results):
    """Per op: geometric means forward and backward for each number of threads, the worst case, and how many lose."""
    rows, counts = single_ops(results["rows"]), thread_counts(results)
    means = [f"{name}, {n} thread{'s' * (n > 1)}" for n in counts for name in ("forward", "backward")]
    groups = {op: [row for row in rows if row["op"] == op] for op in dict.fromkeys(row["op"] for row in rows)}
    if rows:
        groups["**all**"] = rows
    return table(
        ["op", "cases", *means, "worst", f"below {LOSS:.2f}", f"below {CLEAR_LOSS}"],
        [_summary_line(name, of_op, counts) for name, of_op in groups.items()],
    )


def _summary_line(name, rows, counts):
    measured = passes(rows, FORWARD + BACKWARD)
    groups = [[r for r in passes(rows, phases) if r["threads"] == n] for n in counts for phases in (FORWARD, BACKWARD)]
    losing = [sum(row["ratio"] < limit for row in measured) for limit in (LOSS, CLEAR_LOSS)]
    return [
        name,
        len({row["case"] for row in rows}),
        *(f"{geometric_mean(row['ratio'] for row in group):.2f}" if group else "" for group in groups),
        marked(min(row["ratio"] for row in measured)),
        *(f"{n} of {len(measured)}" for n in losing),
    ]


def op(rows):
    """One op: a line per case and number of threads, and per gradient that was timed alone."""
    lines = {}
    for row in rows:
        alone = row["phase"] if row["phase"] in ("input grad", "weight grad") else ""
        line = lines.setdefault((row["case"], alone, row["threads"]), {})
        line["backward" if alone else row["phase"]] = row
    header = ["case", "threads", "forward", "ratio", "ours", "backward", "ratio", "ours", "both", "saved MB", "peak MB"]
    with_compile = any("compile" in row for row in rows)
    body = []
    for (case, alone, threads), line in lines.items():
        forward, backward, both = (line.get(phase) for phase in ("forward", "backward", "both"))
        body.append(
            [
                arrows(f"{case}, {alone}" if alone else case),
                threads,
                *(cell(row) for row in (forward, backward) for cell in (times_cell, ratio_cell, rate_cell)),
                marked(both["ratio"]) if both else "",
                megabytes_cell(both, "saved"),
                megabytes_cell(both, "peak"),
                *[compile_cell(forward), compile_cell(backward)] * with_compile,
            ]
        )
    return table(header + ["forward to torch.compile", "backward to it"] * with_compile, body)


def models(results):
    """Whole models; the targets are those of a training step on most threads."""
    header = ["model", "mode", "threads", "PyTorch", "dlkernels", "ratio", "to torch.compile", "cache off", "target"]
    rows, last = results["rows"], thread_counts(results)[-1]
    return table([*header, "saved MB", "peak MB"], [_model_line(r, last) for r in rows if r["op"] == "model"])


def _model_line(row, most_threads):
    to_compile = row["compile"] / row["ours"] if "compile" in row else math.inf
    target = ""
    if row["phase"] == "training" and row["threads"] == most_threads:
        least = MODELS[row["case"]]
        target = f"{least}, {verdict(min(row['ratio'], to_compile) >= least)}"
    return [
        row["case"],
        row["phase"],
        row["threads"],
        *(f"{duration(row[name])} ({row[f'format {name}']})" for name in ("torch", "ours")),
        ratio_cell(row),
        compile_cell(row),
        marked(row["torch"] / row["uncached"]) if "uncached" in row else "",
        target,
        megabytes_cell(row, "saved"),
        megabytes_cell(row, "peak"),
    ]


def targets(results):
    """Each target with the worst of the cases that it is about, and the least ratio that one would have at the
    roofline: in bold where that is below the target, which this machine then cannot reach."""
    lines = [_target_line(target, target.rows(single_ops(results["rows"]))) for target in TARGETS]
    for row in results["rows"]:
        if row["case"] in SAVED_MB and "saved ours" in row and row["threads"] == thread_counts(results)[-1]:
            saved, most = row["saved ours"] / 1e6, SAVED_MB[row["case"]]
            name = f"{row['case']}: MB saved for backward, at most"
            lines.append([name, most, verdict(saved <= most), "", f"{saved:.1f}", "", ""])
    return table(["target", "at least", "", "reached by", "worst", "which", "the roofline allows"], lines)


def _target_line(target, rows):
    least = f"{target.least:g} {target.unit}".strip()
    if not rows:
        return [target.name, least, "not measured", "", "", "", ""]
    values = [target.value(row) for row in rows]
    worst, row = min(zip(values, rows), key=lambda pair: pair[0])
    reached = f"{sum(value >= target.least for value in values)} of {len(values)}"
    which = arrows(f"{row['case']}, {row['phase']}, {row['threads']}T")
    bounds = [bound for bound in map(target.most, rows) if bound is not None]
    allows = f"{min(bounds):.2f}" if bounds else ""
    if bounds and min(bounds) < target.least:
        allows = f"**{allows}**"
    return [target.name, least, verdict(worst >= target.least), reached, f"{worst:.2f}", which, allows]


def roofline(results):
    lines = []
    for threads, roof in results["machine"]["roofline"].items():
        copy = ", ".join(f"{speed / 1e9:.0f} at {binary_size(size)}" for size, speed in roof["copy"])
        lines.append([threads, f"{roof['flops'] / 1e9:.0f}", copy])
    return table(["threads", "FMA peak, GFLOP/s", "copy, GB/s (read + written), by size of both arrays"], lines)
