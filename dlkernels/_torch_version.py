"""The extension runs only with the torch release it was compiled against: C++ has no stable interface between them."""

import importlib.util

import torch

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps"


def check():
    """ImportError, in one line that says what to run, if the extension is missing or built against another torch."""
    if any(importlib.util.find_spec(f"dlkernels.{built}") is None for built in ("_C", "_build_info")):
        raise ImportError(f"dlkernels is not built here; in its source folder run: {_REBUILD} .")
    from dlkernels import _build_info

    built, running = (version.split("+")[0] for version in (_build_info.TORCH, torch.__version__))
    if built != running:
        raise ImportError(
            f"dlkernels was built with torch {_build_info.TORCH}, but torch {torch.__version__} is running; in its "
            f"source folder run: {_REBUILD} ."
        )
