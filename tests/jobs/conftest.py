"""A tiny model with a tiny vocabulary, saved once for the tests of this folder."""

from infer_runs import checkpoint, tiny  # noqa: F401  (fixtures)
