"""T5X-lite: text-to-text transformers on current JAX."""

import os
from typing import Any

# Paths of object stores go through fsspec: where TensorFlow is installed, etils would take its file systems instead,
# which know no s3:// and take ten seconds to load.
os.environ.setdefault("EPATH_USE_TF", "false")


def __getattr__(name: str) -> Any:
    if name == "__version__":  # read from the installation when it is asked for: setup.cfg alone states it
        from importlib.metadata import version

        return version("t5x-lite")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
