"""The paper's study (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): rows, their scores, and experiments."""

from t5x_lite.study import experiments, rows, scaling, scores  # noqa: F401  (imported for the names that gin files use)
