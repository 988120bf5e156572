"""From the JSON of pytest-benchmark to what people read: results.json, report.md and two pictures.

python benchmarks/report.py make RUN.json FOLDER    writes them to FOLDER
python benchmarks/report.py publish FOLDER          copies them to docs/benchmarks and renews the README's section

Everything is made from results.json, a committed one too; nothing is typed in.
"""

import argparse
import json
from pathlib import Path

import figures
import results as run_results
import tables
from results import BACKWARD, CLEAR_LOSS, FORWARD, LOSS

BUSY = 0.05  # a share of the processor that others may use, before the run and after it

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- benchmarks: `make bench-report` writes this -->", "<!-- benchmarks: end -->"

METHOD = """\
Ratios are PyTorch's median time over ours: above 1, dlkernels is faster. ▽ marks a loss, ▼ one below 0.95. In
parentheses: 20th and 80th percentile of the ratios of the rounds; where they straddle 1, the two are hard to tell
apart.

Both libraries get the same float32 inputs in the same process and take turns, PyTorch, dlkernels, PyTorch, ..., for at
least 7 rounds, after a check of our results on these inputs against PyTorch's (and float64 where that is cheap). A
sample lasts 0.2 ms at least; shorter calls loop within it. Forward runs under `no_grad`; backward is timed apart in
runs of forward and backward with gradients of all inputs; both is their sum. A time includes freeing what the call
returned.

"ours" is our rate and its share of the roofline: the least time in which this machine could do the operations, at its
FMA peak, and move the bytes that cannot be avoided (each input, output and gradient once), at the speed of a copy of as
many bytes, over the time taken. Both ceilings are measured at the start. A share can exceed 100 %: Winograd does fewer
operations than are counted, and inputs may be in cache from the call before. "saved" is what autograd keeps from
forward to backward, weights excluded; "peak" is by how much resident memory rises in one forward and backward.
"""

MODELS_METHOD = """\
Each library in the memory format that is better for it (in parentheses), in turns as above, but of as many
steps as fill 0.1 s: a step finds in the caches what the one before it left there, as in training. A training step is
forward, loss, backward and SGD; the ratio to `torch.compile` leaves compilation out. "cache off" is the ratio to eager
PyTorch without the caching allocator of dlkernels; elsewhere our tensors have it and PyTorch's do not. Saved for
backward: without parameters.
"""


TARGETS_METHOD = """\
The targets were set on two cores of an AMD Zen 3 with AVX2. "The roofline allows": the ratio of the case that has
least room, if our time were the least in which this machine could do it (where Winograd's algorithm takes fewer
operations, of 3 x 3 filters a quarter, in so many); in bold where the target is out of reach here.
"""


def machine_line(results):
    machine = results["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instruction set']}, {caches}, "
        f"{machine['memory GB']} GB; torch {machine['torch']}, dlkernels {machine['dlkernels']}, commit "
        f"{results['commit']}, {results['date']}"
    )


def warnings(results):
    """If this is not the whole suite, or the machine was not ours alone."""
    text = ""
    if selection := results["selection"]:
        text += f" **Only a part of the suite (`{selection}`); `make bench` runs all of it.**"
    if (busy := max(share or 0 for share in results["machine"]["busy"])) > BUSY:
        text += f" **Other programs used {100 * busy:.0f} % of the processor: these figures are not to be trusted.**"
    return text


def losses_line(results):
    measured = run_results.passes(results["rows"], FORWARD + BACKWARD)
    losing, clearly = (sum(row["ratio"] < limit for row in measured) for limit in (LOSS, CLEAR_LOSS))
    return f"Of {len(measured)} comparisons, forward and backward, {losing} are below 1.0 and {clearly} below 0.95."


def report(results):
    """report.md."""
    parts = [
        "# Benchmarks",
        f"{machine_line(results)}.{warnings(results)}",
        METHOD,
        "## Summary",
        losses_line(results),
        tables.summary(results),
        "![ratios](ratios.png)",
        "## Whole models",
        MODELS_METHOD,
        tables.models(results),
        "## Targets",
        TARGETS_METHOD,
        tables.targets(results),
        "## Roofline",
        tables.roofline(results),
        "![roofline](roofline.png)",
    ]
    for op in dict.fromkeys(row["op"] for row in results["rows"] if row["op"] != "model"):
        parts += [f"## {op}", tables.op([row for row in results["rows"] if row["op"] == op])]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def readme_section(results):
    """What stands between the README's markers."""
    parts = [
        "Geometric means of PyTorch's time over ours (above 1, dlkernels is faster) and the worst case of each op:",
        tables.summary(results),
        f"{losses_line(results)} [The report](docs/benchmarks/report.md) lists every one, says how it was measured and "
        "which targets are not met.",
        "![ratios of all cases](docs/benchmarks/ratios.png)",
        "Whole models, each library in its better memory format:",
        tables.models(results),
        f"Measured on {machine_line(results)}.{warnings(results)}",
    ]
    return "\n\n".join(parts)


def with_section(readme, section):
    """The README with another section between its markers."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END)[1]}"


def write(results, folder):
    folder.mkdir(parents=True, exist_ok=True)
    run_results.save(results, folder / "results.json")
    (folder / "report.md").write_text(report(results))
    figures.ratios(results, folder / "ratios.png")
    figures.roofline(results, folder / "roofline.png")


def make(options):
    results = run_results.collect(json.loads(options.run.read_text()))
    write(results, options.folder)
    results = run_results.load(options.folder / "results.json")
    print(tables.summary(results), losses_line(results), f"report: {options.folder}/report.md", sep="\n\n")


def publish(options):
    results = run_results.load(options.folder / "results.json")
    write(results, PUBLISHED)
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(), readme_section(results)))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make")
    making.add_argument("run", type=Path, help="the JSON of pytest-benchmark")
    making.set_defaults(command=make)
    publishing = commands.add_parser("publish")
    publishing.set_defaults(command=publish)
    for command in (making, publishing):
        command.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    options.command(options)


if __name__ == "__main__":
    main()
