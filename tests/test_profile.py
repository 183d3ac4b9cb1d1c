"""Steps that are traced by a binding."""

import jax.numpy as jnp
import pytest
from npz_runs import flags, run, write_rows

from t5x_lite import monitor
from t5x_lite.errors import UserError


def traces(folder):
    return [path.stat().st_size for path in folder.rglob("*.xplane.pb")]


@pytest.mark.slow
def test_a_run_traces_the_steps_it_is_told_to(tmp_path, capsys):
    write_rows(tmp_path / "rows.npz", 40)
    folder = tmp_path / "run"
    assert (
        run(folder, *flags(tmp_path / "rows.npz", TRAIN_STEPS=4), "--gin.Profile.start_step=2", "--gin.Profile.steps=2")
        == 0
    )
    assert f"steps 2 to 3 are traced in {folder / 'profile'}" in capsys.readouterr().out
    (size,) = traces(folder / "profile")
    assert size > 1000


def test_a_trace_whose_end_is_not_reached_is_kept(tmp_path):
    said = []
    with monitor.Profiler(monitor.Profile(start_step=1, steps=9), tmp_path, said.append) as profiler:
        profiler.before(1)
        profiler.after(1, jnp.zeros(1))
        assert not traces(tmp_path)
    assert len(traces(tmp_path)) == 1 and not said


def test_no_trace_elsewhere_and_none_in_a_bucket(tmp_path):
    with monitor.Profiler(monitor.Profile(start_step=1), tmp_path, enabled=False) as profiler:
        profiler.before(1)
        profiler.after(5, jnp.zeros(1))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"set Profile\.folder to a local folder"):
        monitor.Profiler(monitor.Profile(start_step=1), "gs://bucket/run/profile")
    with pytest.raises(UserError, match=r"Profile\.start_step = 0"):
        monitor.Profile(start_step=0)
