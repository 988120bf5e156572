"""A thin adapter: asks torch and pybind11 where they are and lets CMakeLists.txt build the extension."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_INFO = "_build_info.py"
ALL_GPUS = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]  # the last one also as PTX, for GPUs yet to come
OLDEST_GPU = 80  # bfloat16 and cp.async


def require(module):
    """Imports a build requirement, or stops with the one line that says what to run."""
    try:
        return __import__(module)
    except ImportError:
        sys.exit(
            f"dlkernels: building needs {module}, which this environment lacks. dlkernels must be built against the "
            "torch it will run with: pip install torch cmake ninja pybind11 setuptools wheel, "
            "then pip install --no-build-isolation ."
        )


def jobs():
    """As many compilers as there are cores and memory (about 2 GiB each) for."""
    # Not SC_AVPHYS_PAGES, which leaves out what the page cache would give back: after an install, nearly all.
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return max(1, min(len(os.sched_getaffinity(0)), int(available[1]) // 2**21))


def find_nvcc():
    """Path of nvcc and its version, (major, minor); (None, None) if there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    path = shutil.which("nvcc") or next((p for h in homes if h and (p := shutil.which("nvcc", path=f"{h}/bin"))), None)
    if path is None:
        return None, None
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    return path, tuple(int(n) for n in re.search(r"release (\d+)\.(\d+)", text).groups())


def number(arch):
    """90 of "9.0", "9.0a" or "9.0+PTX"; 0 of what is no compute capability."""
    match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", arch)
    return 10 * int(match[1]) + int(match[2]) if match else 0


def as_ptx(known, gpu):
    newest = max(n for n in known if n <= gpu)
    return f"{newest // 10}.{newest % 10}+PTX"


def cuda_architectures(torch, nvcc):
    """CMAKE_CUDA_ARCHITECTURES: those of TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"), else of the visible GPUs, else all."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").split(";")
    wanted = [arch for arch in wanted if arch]
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = sorted(int(number) for number in re.findall(r"compute_(\d+)", listed))
    if not wanted and torch.cuda.is_available():
        capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        wanted = [f"{major}.{minor}" for major, minor in sorted(capabilities)]
        # A GPU that is newer than nvcc compiles the PTX of the newest before it.
        wanted = [arch if number(arch) in known else as_ptx(known, number(arch)) for arch in wanted]
    if not wanted:
        wanted = [arch for arch in ALL_GPUS if number(arch) in known]
        wanted[-1] += "+PTX"
    architectures = []
    for arch in wanted:
        if number(arch) < OLDEST_GPU:
            sys.exit(f"dlkernels: its CUDA kernels need GPUs of compute capability 8.0 or later, not {arch!r}")
        name = arch.removesuffix("+PTX").replace(".", "")
        architectures.append(f"{name}-real")
        if arch.endswith("+PTX"):
            architectures.append(f"{name}-virtual")
    return architectures


def cuda_configuration(torch):
    """CMake's options for the CUDA kernels: none for a CPU-only build, and the reason in one line."""
    mode = os.environ.get("DLKERNELS_CUDA", "auto")
    nvcc, version = find_nvcc()
    reason = None
    if mode not in ("auto", "0", "1"):
        sys.exit(f"dlkernels: DLKERNELS_CUDA must be 0, 1 or unset, got {mode!r}")
    if mode == "0":
        reason = "DLKERNELS_CUDA=0"
    elif torch.version.cuda is None:
        reason = f"torch {torch.__version__} is a CPU build"
    elif nvcc is None:
        reason = "nvcc was not found (on PATH, in CUDA_HOME or /usr/local/cuda)"
    elif version[0] != int(torch.version.cuda.split(".")[0]):
        reason = f"nvcc is version {version[0]}.{version[1]}, torch was built with CUDA {torch.version.cuda}"
    elif mode == "auto" and not torch.cuda.is_available():
        reason = "no GPU is visible (DLKERNELS_CUDA=1 builds for all)"
    elif mode == "auto" and min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())) < (8, 0):
        reason = "a visible GPU is older than compute capability 8.0"
    if reason is None:
        architectures = cuda_architectures(torch, nvcc)
        print(f"dlkernels: CUDA kernels are built for {' '.join(architectures)}", flush=True)
        return {"DLK_CUDA_ARCHITECTURES": ";".join(architectures), "CMAKE_CUDA_COMPILER": nvcc}
    if mode == "1":
        sys.exit(f"dlkernels: DLKERNELS_CUDA=1, but {reason}")
    print(f"dlkernels: built without CUDA kernels: {reason}", flush=True)
    return {"DLK_CUDA_ARCHITECTURES": ""}


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        torch, pybind11 = require("torch"), require("pybind11")
        from torch.utils import cpp_extension

        # The build folder is per torch and Python version: switching between them rebuilds, switching back does not.
        tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        build = Path(os.environ.get("DLKERNELS_BUILD_DIR", ROOT / "build" / tag))
        cuda = cuda_configuration(torch)
        includes = [pybind11.get_include(), *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
        configure = {
            "DLK_INCLUDE_DIRS": ";".join(includes),
            "DLK_TORCH_LIB_DIR": cpp_extension.library_paths()[0],
            "DLK_TORCH_CXX_FLAGS": f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            "DLK_EXTENSION_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "DLK_TESTS": os.environ.get("DLKERNELS_CPP_TESTS", "OFF"),
            "DLK_SIMT": os.environ.get("DLKERNELS_SIMT", "OFF"),
            **cuda,
        }
        arguments = [f"-D{name}={value}" for name, value in configure.items()]
        # cmake and ninja of this Python's environment, before the system's, which may be old.
        path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        cmake, env = shutil.which("cmake", path=path), {**os.environ, "PATH": path}
        if cmake is None:
            sys.exit("dlkernels: building needs cmake, which was not found: pip install cmake ninja")
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *arguments], check=True, env=env)
        subprocess.run([cmake, "--build", build, "--parallel", str(jobs())], check=True, env=env)

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / f"_C{configure['DLK_EXTENSION_SUFFIX']}"), str(target))
        built_with = {"TORCH": torch.__version__, "CUDA_ARCHITECTURES": cuda["DLK_CUDA_ARCHITECTURES"]}
        lines = ['"""Written by setup.py: what the extension was built with."""', ""]
        lines += [f'{name} = "{value}"' for name, value in built_with.items()]
        (target.parent / BUILD_INFO).write_text("\n".join(lines) + "\n")

    def copy_extensions_to_source(self):
        """In-place and editable builds: the extension's companion goes to the source folder with it."""
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, "dlkernels", BUILD_INFO)), str(ROOT / "dlkernels" / BUILD_INFO))


setup(ext_modules=[Extension("dlkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
