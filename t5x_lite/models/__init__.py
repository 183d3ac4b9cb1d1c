"""T5 models as pure functions on arrays.

Shapes are written with the field's letters throughout this package:

    b  batch            h  heads                 l  layers
    s  source length    k  width of one head     v  vocabulary
    t  target length    d  model width           f  feed-forward width
    q  query length (s or t)                     m  memory (key) length (s or t)

Files, from the outside inwards: `model.py` is what the rest of the library calls, `encoder_decoder.py` wires the
two stacks, `stack.py` scans one layer many times, `layers.py` and `attention.py` hold the parts, `config.py` the sizes.
"""

from t5x_lite.models.config import T5Config
from t5x_lite.models.model import Model

__all__ = ["Model", "T5Config"]
