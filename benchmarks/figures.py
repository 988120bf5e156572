"""The two pictures of a report: ratios of every case, and where they stand under the roofline."""

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from results import BACKWARD, FORWARD, geometric_mean, single_ops, thread_counts  # noqa: E402

THEIRS, OURS, LOSING = "tab:gray", "tab:green", "tab:red"
DPI = 110


def most_threads(results):
    """Rows of single ops with the largest number of threads that was measured."""
    threads = thread_counts(results)[-1]
    return threads, [row for row in single_ops(results["rows"]) if row["threads"] == threads]


def ratios(results, path):
    """A bar per op (geometric mean) with a dot per case, forward and backward, on a logarithmic axis."""
    threads, rows = most_threads(results)
    ops = list(dict.fromkeys(row["op"] for row in rows))[::-1]
    figure, panels = plt.subplots(1, 2, figsize=(12, 1.5 + 0.28 * len(ops)), sharey=True, layout="constrained")
    for panel, (name, phases) in zip(panels, (("forward", FORWARD), ("backward", BACKWARD))):
        for y, op in enumerate(ops):
            values = [row["ratio"] for row in rows if row["op"] == op and row["phase"] in phases]
            if not values:
                continue
            panel.barh(y, geometric_mean(values) - 1, left=1, color=OURS, alpha=0.4)
            panel.scatter(values, [y] * len(values), s=12, c=[LOSING if v < 1 else OURS for v in values], zorder=2)
        panel.axvline(1, color="black", linewidth=1)
        panel.set(title=f"{name}, {threads} threads", xscale="log", xlabel="time of PyTorch / time of dlkernels")
        ticks = [
            t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if panel.get_xlim()[0] <= t <= panel.get_xlim()[1]
        ]
        panel.set_xticks(ticks, [f"{t:g}" for t in ticks])
        panel.minorticks_off()
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(ops)), ops)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def roofline(results, path):
    """Products and convolutions by operations per byte under the FMA peak, others by bytes under a copy's speed."""
    threads, rows = most_threads(results)
    roof = results["machine"]["roofline"][str(threads)]
    rows = [row for row in rows if row["phase"] in FORWARD]
    figure, (products, others) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, color in (("torch", THEIRS), ("ours", OURS)):
        label = "PyTorch" if name == "torch" else "dlkernels"
        counted = [row for row in rows if row["flops"]]
        x, y = (
            zip(*((row["flops"] / row["bytes"], row["flops"] / row[name] / 1e9) for row in counted))
            if counted
            else ((), ())
        )
        products.scatter(x, y, s=14, color=color, label=label)
        rest = [row for row in rows if not row["flops"]]
        x, y = zip(*((row["bytes"] / 1e6, row["bytes"] / row[name] / 1e9) for row in rest)) if rest else ((), ())
        others.scatter(x, y, s=14, color=color, label=label)
    peak, slowest = roof["flops"] / 1e9, roof["copy"][-1][1] / 1e9
    intensities = [0.1, peak / slowest, 1000]
    products.plot(intensities, [min(peak, slowest * x) for x in intensities], color="black", linewidth=1,
                  label="FMA peak, copy from memory")  # fmt: skip
    others.plot([size / 1e6 for size, _ in roof["copy"]], [speed / 1e9 for _, speed in roof["copy"]], color="black",
                linewidth=1, label="copy")  # fmt: skip
    products.set(title=f"products and convolutions, forward, {threads} threads", xlabel="operations per byte",
                 ylabel="GFLOP/s", xscale="log", yscale="log")  # fmt: skip
    others.set(title="other ops", xlabel="megabytes read and written", ylabel="GB/s", xscale="log", yscale="log")
    for panel in (products, others):
        panel.legend()
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
