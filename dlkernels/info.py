"""What this installation is: for people (`python -m dlkernels`) and for programs (`dlkernels.info()`)."""

import importlib.metadata
import platform

import torch

from dlkernels import _C, _build_info


def info():
    """Versions, instruction sets, threads and kernels, as a dict of strings."""
    return {
        "dlkernels": importlib.metadata.version("dlkernels"),
        "python": platform.python_version(),
        "torch running": torch.__version__,
        "torch built with": _build_info.TORCH,
        "instruction set": f"{_C.isa()} (available: {', '.join(_C.available_isas())}; DLKERNELS_ISA overrides)",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "CPU kernels": "float32, float64",
        "CUDA kernels": "not built: this version has none yet; CUDA tensors run PyTorch's ops",
    }
