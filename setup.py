"""A thin adapter: asks torch and pybind11 where they are and lets CMakeLists.txt build the extension."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_INFO = "_build_info.py"


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))


class CMakeBuild(build_ext):
    def build_extension(self, ext):
        torch, pybind11 = require("torch"), require("pybind11")
        from torch.utils import cpp_extension

        # The build folder is per torch and Python version: switching between them rebuilds, switching back does not.
        tag = f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        build = Path(os.environ.get("DLKERNELS_BUILD_DIR", ROOT / "build" / tag))
        includes = [pybind11.get_include(), *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
        configure = {
            "DLK_INCLUDE_DIRS": ";".join(includes),
            "DLK_TORCH_LIB_DIR": cpp_extension.library_paths()[0],
            "DLK_TORCH_CXX_FLAGS": f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            "DLK_EXTENSION_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "DLK_TESTS": os.environ.get("DLKERNELS_CPP_TESTS", "OFF"),
            "DLK_SIMT": os.environ.get("DLKERNELS_SIMT", "OFF"),
        }
        arguments = [f"-D{name}={value}" for name, value in configure.items()]
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *arguments], check=True)
        subprocess.run(["cmake", "--build", build, "--parallel", str(jobs())], check=True)

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / f"_C{configure['DLK_EXTENSION_SUFFIX']}"), str(target))
        info = f'"""Written by setup.py: what the extension was built with."""\n\nTORCH = "{torch.__version__}"\n'
        (target.parent / BUILD_INFO).write_text(info)

    def copy_extensions_to_source(self):
        """In-place and editable builds: the extension's companion goes to the source folder with it."""
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, "dlkernels", BUILD_INFO)), str(ROOT / "dlkernels" / BUILD_INFO))


setup(ext_modules=[Extension("dlkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
