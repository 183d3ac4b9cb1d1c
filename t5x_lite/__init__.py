"""T5X-lite: text-to-text transformers on current JAX."""

import os

# Paths of object stores go through fsspec: where TensorFlow is installed, etils would take its file systems instead,
# which know no s3:// and take ten seconds to load.
os.environ.setdefault("EPATH_USE_TF", "false")
