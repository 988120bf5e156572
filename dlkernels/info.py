"""What this installation is: for people (`python -m dlkernels`) and for programs (`dlkernels.info()`)."""

import importlib.metadata
import platform

import torch

from dlkernels import _C, _build_info


def cuda_kernels():
    """For which GPUs there are CUDA kernels, and whether one is here."""
    if not _build_info.CUDA_ARCHITECTURES:
        return "not built (pip install prints why): CUDA tensors run PyTorch's ops"
    seen = f"{torch.cuda.device_count()} visible" if torch.cuda.is_available() else "none visible"
    architectures = _build_info.CUDA_ARCHITECTURES.replace("-real", "").replace("-virtual", "+PTX").replace(";", ", ")
    return f"float32, float64, float16, bfloat16, built for sm {architectures}; GPUs: {seen}"


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
        "CUDA kernels": cuda_kernels(),
    }
