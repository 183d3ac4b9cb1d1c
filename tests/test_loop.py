"""Parts of the training loop that take no training to see; whole runs are in test_faults.py and tasks/test_jobs.py."""

import pytest

from t5x_lite import loop
from t5x_lite.errors import UserError


@pytest.mark.parametrize("name, values", [("eval/a/loss", [5.0, 4.0, 4.5, 4.0, 3.0, 3.5, 3.5]),
                                          ("eval/a/accuracy", [5.0, 6.0, 5.5, 6.0, 7.0, 6.5, 6.5])])
def test_training_stops_after_so_many_evaluations_without_a_new_best(name, values):
    best = {"value": None, "bad": 0}
    stops = [loop._early_stop(best, {name: value}, name, patience=3) for value in [*values, values[-1]]]
    assert stops == [False] * 7 + [True] and best == {"value": values[4], "bad": 3}
    assert not loop._early_stop(best, {}, None, patience=3)
    with pytest.raises(UserError, match="early_stopping_metric = 'eval/b' is not evaluated; there are eval/a"):
        loop._early_stop(best, {"eval/a": 1.0}, "eval/b", patience=3)
