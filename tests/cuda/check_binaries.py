"""What nvcc makes of csrc/cuda, checked without a GPU: `make check-cuda` (and --update: `make cuda-budget`).

Every .cu is compiled for each architecture. Then, per kernel:
  - ptxas reports no stack frame and no spilled register, and the machine code has no access to local memory;
  - its code is there: it ends, and is no trap;
  - registers and shared memory are within tests/cuda/budget.tsv, and so the occupancy is that of the table;
  - the instructions that its speed rests on are there: tensor cores, ldmatrix, cp.async, 128-bit loads and stores.
Needs nvcc, c++filt, and cuobjdump with nvdisasm (PyPI: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

import argparse
import concurrent.futures
import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Path(__file__).with_name("budget.tsv")
BUILD = ROOT / "build" / "check-cuda"
FLAGS = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-I", str(ROOT)]  # as csrc/cuda/CMakeLists.txt
COLUMNS = ["arch", "file", "kernel", "threads", "registers", "shared", "blocks", "occupancy"]

# Per multiprocessor, CUDA C++ programming guide, "technical specifications per compute capability".
LIMITS = {
    "80": {"warps": 64, "blocks": 32, "shared": 164 << 10},
    "90": {"warps": 64, "blocks": 32, "shared": 228 << 10},
}
REGISTERS = 64 << 10  # given to warps in units of 256
SHARED_PER_BLOCK = 1 << 10  # what the system takes of shared memory for each block

# Kernels (a regular expression on the name) and the instructions that must be in each.
REQUIRED = [
    (r"^multiply_tile<TileFor<f16", [r"^HMMA\.16816\.F32$", r"^LDSM"]),
    (r"^multiply_tile<TileFor<bf16", [r"^HMMA\.16816\.F32\.BF16", r"^LDSM"]),
    (r"^multiply_tile<TileFor<float, true", [r"^HMMA\.1688\.F32\.TF32"]),
    (r"^multiply_tile<TileFor<float, false", [r"^FFMA", r"^LDS\.128"]),
    (r"^multiply_tile<TileFor<double", [r"^DMMA"]),
    (r"^multiply_tile<TileFor<(float|double)", [r"^LDGSTS"]),
    (r"Source<(f16|bf16), [^<>]*8>", [r"^LDGSTS\.E\.BYPASS\.128"]),
    (r"Source<float, [^<>]*4>", [r"^LDGSTS\.E\.BYPASS\.128"]),
    (r"Source<double, [^<>]*2>", [r"^LDGSTS\.E\.BYPASS\.128"]),
    (r"^(map_kernel|apply_kernel)<", [r"^LDG\.E\.128", r"^STG\.E\.128"]),
    (r"^channel_partials<(f16|bf16|float)", [r"^LDG\.E\.128"]),
]
FORBIDDEN = r"^(LDL|STL)"


@dataclass
class Kernel:
    arch: str
    file: str
    name: str = ""
    threads: int = 0
    registers: int = 0
    shared: int = 0
    local: str = ""  # what ptxas says of stack frame and spills, if there is any
    code: list = field(default_factory=list)  # (address, opcode, operands)

    def row(self):
        limits = LIMITS[self.arch]
        warps = self.threads // 32
        per_warp = -(-self.registers * 32 // 256) * 256
        blocks = min(
            limits["blocks"],
            limits["warps"] // warps,
            REGISTERS // per_warp // warps,
            limits["shared"] // (self.shared + SHARED_PER_BLOCK),
        )
        occupancy = f"{100 * blocks * warps // limits['warps']}%"
        return dict(
            zip(
                COLUMNS, [self.arch, self.file, self.name, self.threads, self.registers, self.shared, blocks, occupancy]
            )
        )


def tool(name):
    """Path of a program: on PATH, or in the PyPI package of this environment that has it."""
    packages = Path(sysconfig.get_path("purelib"), "nvidia")
    path = next((str(p) for p in sorted(packages.glob(f"**/bin/{name}"))), None) or shutil.which(name)
    if path is None:
        sys.exit(f"check-cuda: {name} was not found")
    return path


def output_of(*command):
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"check-cuda: {' '.join(str(word) for word in command)} failed:\n{result.stderr}")
    return result.stdout, result.stderr


def short_name(symbol):
    """multiply_tile<TileFor<f16, false, LargeTile>, ...> of a demangled kernel."""
    name = re.sub(r"dlk::|cuda::|\(anonymous namespace\)::|std::|^void ", "", symbol)
    name = re.sub(r"\((?:LaneIs|Order|[\w:]+)\)(\d+)", r"\1", name)  # enumerators are printed as casts
    depth = 0
    for i, c in enumerate(name):  # cut the parameters
        depth += {"<": 1, ">": -1}.get(c, 0)
        if c == "(" and depth == 0:
            return name[:i]
    return name


def compile_kernels(source, arch):
    """The kernels of a .cu by mangled name."""
    cubin = BUILD / f"{source.stem}.{arch}.cubin"
    _, log = output_of(tool("nvcc"), *FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin", source, "-o", cubin)
    kernels, current = {}, None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            current = kernels[match[1]] = Kernel(arch, source.name)
        elif "stack frame" in line and not re.search(r"\b0 bytes stack frame, 0 .* stores, 0 .* loads", line):
            current.local = line.strip()
        elif match := re.search(r"Used (\d+) registers", line):
            current.registers = int(match[1])
            if shared := re.search(r"(\d+) bytes smem", line):
                current.shared = int(shared[1])
    if not kernels:
        return kernels

    elf, _ = output_of(tool("cuobjdump"), "-elf", cubin)
    for section in re.split(r"^\.nv\.info\.", elf, flags=re.M)[1:]:
        threads = re.search(r"EIATTR_MAX_THREADS\s+Format:\s+EIFMT_SVAL\s+Value:\s+(0x\w+) (0x\w+) (0x\w+)", section)
        sizes = [int(n, 16) for n in threads.groups()]
        kernels[section.split()[0]].threads = sizes[0] * sizes[1] * sizes[2]

    sass, _ = output_of(tool("cuobjdump"), "-sass", cubin)
    for part in sass.split("Function : ")[1:]:
        code = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)([^;]*);", part)
        kernels[part.split(None, 1)[0]].code = [(int(at, 16), opcode, operands) for at, opcode, operands in code]

    names, _ = output_of("c++filt", *kernels)
    for kernel, name in zip(kernels.values(), names.splitlines()):
        kernel.name = short_name(name)
        if match := re.match(r"multiply_tile<.* (\d+)>$", kernel.name):
            kernel.shared += int(match[1])  # dynamic shared memory is its last template argument
    return kernels


def problems_of(kernel):
    """What is wrong with a kernel by itself."""
    opcodes = {opcode for _, opcode, _ in kernel.code}
    found = [kernel.local] if kernel.local else []
    if not kernel.code or not kernel.threads:
        found.append("its code or its launch bounds were not found")
    found += [f"accesses local memory: {o}" for o in opcodes if re.search(FORBIDDEN, o)]
    if "EXIT" not in opcodes:  # nvcc does so where the code reads what only the host has, without a word
        found.append("has no end: nvcc replaced its body by a trap")
    for name, instructions in REQUIRED:
        if re.search(name, kernel.name):
            found += [f"has no {i}" for i in instructions if not any(re.search(i, o) for o in opcodes)]
    return found


# ---- The main loops of matrix products: what a warp needs of each unit, per pass, in cycles of a quarter of a
# multiprocessor. These are the data sheets' rates, not measurements.

MATH = {  # cycles of an instruction
    "80": {"HMMA.16816": 8, "HMMA.1688": 8, "DMMA": 16, "FFMA": 2},  # 1024 and 512 FMA per cycle; 64; 64
    "90": {"HMMA.16816": 4, "HMMA.1688": 4, "DMMA": 8, "FFMA": 1},
}


def main_loop(kernel):
    """The instructions of the loop with the most arithmetic."""
    best, most = [], 0
    for address, opcode, operands in kernel.code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if opcode != "BRA" or not target or int(target[1], 16) >= address:
            continue
        body = [op for at, op, _ in kernel.code if int(target[1], 16) <= at <= address]
        arithmetic = sum(op.startswith(tuple(MATH["80"])) for op in body)
        if arithmetic > most:
            best, most = body, arithmetic
    return Counter(best)


def loop_row(kernel):
    """Cycles per pass of arithmetic, of issue, of shared memory, and the share of peak that they allow."""
    loop = main_loop(kernel)

    def total(cycles_of):
        return sum(count * cycles_of(opcode) for opcode, count in loop.items())

    def math(opcode):
        return next((c for name, c in MATH[kernel.arch].items() if opcode.startswith(name)), 0)

    def shared(opcode):  # 128 bytes per cycle, for four quarters
        if not opcode.startswith(("LDS", "STS", "LDGSTS")):
            return 0
        bytes_per_lane = 16 if opcode.startswith("LDSM") or ".128" in opcode else 8 if ".64" in opcode else 4
        return bytes_per_lane * 32 // 128 * 4

    cycles = [total(math), total(lambda _: 1), total(shared)]
    return [*cycles, f"{100 * cycles[0] // max(cycles)}%"]


def print_loops(kernels):
    """The kernels of large tiles for A and B that are not transposed, read 16 bytes at a time."""
    print("| GPU | kernel | arithmetic | issue | shared memory | at most |\n|---|---|---|---|---|---|")
    pattern = r"multiply_tile<TileFor<(\w+), (\w+), LargeTile>, MatrixSource<\w+, 0, [248]>, MatrixSource<\w+, 1, "
    for kernel in kernels:
        if match := re.match(pattern, kernel.name):
            kind = {"float": "float32, CUDA cores", "double": "float64", "f16": "float16", "bf16": "bfloat16"}[match[1]]
            kind = "float32 as TF32" if match[2] == "true" else kind
            print(f"| sm_{kernel.arch} | {kind} | " + " | ".join(str(v) for v in loop_row(kernel)) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the budget instead of checking it")
    parser.add_argument("--loops", action="store_true", help="print the main loops of matrix products (docs/cuda.md)")
    parser.add_argument("--arch", nargs="+", default=list(LIMITS), choices=list(LIMITS))
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc" / "cuda").glob("gemm.cu" if arguments.loops else "*.cu"))
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(compile_kernels, source, arch) for arch in arguments.arch for source in sources]
        kernels = [kernel for job in jobs for kernel in job.result().values()]
    kernels.sort(key=lambda kernel: (kernel.arch, kernel.file, kernel.name))
    if arguments.loops:
        return print_loops(kernels)

    problems = [f"sm_{k.arch} {k.file} {k.name}: {problem}" for k in kernels for problem in problems_of(k)]
    rows = [kernel.row() for kernel in kernels]
    if arguments.update:
        with BUDGET.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    with BUDGET.open() as file:
        budget = {tuple(row[c] for c in COLUMNS[:3]): row for row in csv.DictReader(file, delimiter="\t")}
    for row in rows:
        key = tuple(row[c] for c in COLUMNS[:3])
        allowed, where = budget.pop(key, None), "sm_" + " ".join(key)
        if allowed is None:
            problems.append(f"{where}: not in the budget")
            continue
        for column in ("threads", "registers", "shared"):
            if row[column] > int(allowed[column]):
                problems.append(f"{where}: {column} {row[column]}, budget {allowed[column]}")
    problems += [f"sm_{' '.join(key)}: in the budget, but gone" for key in budget if key[0] in arguments.arch]
    print("\n".join(problems))
    print(f"{len(kernels)} kernels of {len(sources)} files, {len(problems)} problems")
    if problems:
        sys.exit("check-cuda failed. If the change of the budget is meant: make cuda-budget, and read its diff")


if __name__ == "__main__":
    main()
