"""T5X-lite: text-to-text transformers on current JAX.

from t5x_lite import Model

model = Model.load("/tmp/t5x_lite/library")
model.generate(["library: Computes the softmax of the logits along one axis."])
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t5x_lite.api import Model

__all__ = ["Model"]

# Paths of object stores go through fsspec: where TensorFlow is installed, etils would take its file systems instead,
# which know no s3:// and take ten seconds to load.
os.environ.setdefault("EPATH_USE_TF", "false")


def __getattr__(name: str) -> Any:
    """`Model` brings JAX, which a mere `import t5x_lite` must not wait for."""
    if name == "Model":
        from t5x_lite.api import Model

        return Model
    if name == "__version__":  # read from the installation when it is asked for: setup.cfg alone states it
        from importlib.metadata import version

        return version("t5x-lite")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
