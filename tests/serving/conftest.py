"""A tiny model, saved once and on one device, for the tests of this folder."""

from infer_runs import checkpoint, tiny  # noqa: F401  (fixtures)
from small_models import small  # noqa: F401  (fixture)
