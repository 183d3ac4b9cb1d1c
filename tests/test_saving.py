"""Which checkpoints stay; a run outlives a disk that is full or gone, and says so."""

import resource
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import checkpoints, save_barriers
from t5x_lite.errors import UserError
from t5x_lite.saving import Keep, Retry, Saver
from t5x_lite.trainer import TrainState

DATA = {"positions": np.zeros((2, 2), np.int64)}


def state(step):
    return TrainState(jnp.int32(step), {"w": jnp.full((3, 2), float(step))}, (jnp.full((3,), float(step)),))


@pytest.mark.parametrize(
    "keep, kept",
    [
        (Keep(), [40, 50, 60]),
        (Keep(last=None), [10, 20, 30, 40, 50, 60]),
        (Keep(last=1, every=20), [20, 40, 60]),
        (Keep(last=1, best=2, metric="eval/x/accuracy"), [20, 40, 60]),
        (Keep(last=1, best=2, metric="eval/x/loss"), [10, 30, 60]),
    ],
)
def test_what_stays_by_each_rule(tmp_path, keep, kept):
    """Through Orbax and from disk: a second start knows the metrics of the first one's checkpoints."""
    metrics = {10: 0.1, 20: 0.8, 30: 0.1, 40: 0.9, 50: None, 60: float("nan")}
    for steps in ((10, 20, 30), (40, 50, 60)):
        with checkpoints.Checkpointer(tmp_path, keep) as checkpointer:
            for step in steps:
                found = {} if metrics[step] is None else {keep.metric or "eval/x/loss": metrics[step]}
                checkpointer.save(state(step), DATA, {"metrics": found})
    assert checkpoints.steps(tmp_path) == kept


def test_of_equals_the_earlier_stays():
    metrics = {step: {"loss": 1.0} for step in (1, 2, 3)}
    assert Keep(last=1, best=1, metric="loss").chosen([1, 2, 3], metrics) == {1, 3}


@pytest.mark.parametrize("wrong", [{"last": 0}, {"every": 0}, {"best": 1}, {"metric": "loss"}])
def test_a_rule_that_keeps_nothing_is_refused(wrong):
    with pytest.raises(UserError, match="Keep"):
        Keep(**wrong)


class Time:
    """A clock that sleeping moves on."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def saver(tmp_path):
    """A saver whose folder can be taken away, with the lines it said."""
    clock, said = Time(), []
    with checkpoints.Checkpointer(tmp_path / "run") as checkpointer:
        saver = Saver(checkpointer, Retry(seconds=10.0, max_seconds=25.0, failures=5), said.append, clock, clock.sleep)
        saver.test_call = lambda step: lambda: checkpointer.save(state(step), DATA, {})
        yield saver, said, clock, tmp_path / "run" / "checkpoints"


def break_folder(folder):
    """A file where the folder was: not even root can write into it."""
    folder.rename(folder.parent / "away")
    folder.write_text("")


def mend_folder(folder):
    folder.unlink()
    (folder.parent / "away").rename(folder)


def test_training_goes_on_and_saving_is_tried_again(saver):
    saver, said, clock, folder = saver
    assert saver.save_now(1, saver.test_call(1))
    lasting = {thread for thread in threading.enumerate() if not thread.daemon}
    break_folder(folder)
    for step, wait in ((2, 10.0), (3, 20.0), (4, 25.0)):
        saver.save(step, saver.test_call(step))
        saver.wait()
        assert f"saving step {step} failed" in said[-1] and f"trying again in {wait:.0f} s" in said[-1]
        assert not saver.due(step), "not at once"
        clock.now += wait
        assert saver.due(step)
    assert "failure 3 of 5" in said[-1]
    left = [thread for thread in threading.enumerate() if not thread.daemon and thread not in lasting]
    assert len(left) <= 1, "nothing is left that would keep the process from ending"
    mend_folder(folder)
    assert saver.save(5, saver.test_call(5))
    saver.wait()
    assert said[-1] == "step 5 is saved: saving works again" and not saver.due(5)
    assert checkpoints.steps(folder.parent) == [1, 5]


def test_after_so_many_failures_the_run_stops(saver):
    saver, said, clock, folder = saver
    break_folder(folder)
    with pytest.raises(UserError, match="5 times in a row by now; there is no checkpoint yet. Make room"):
        saver.finish(7, saver.test_call(7))
    assert clock.slept == [10.0, 20.0, 25.0, 25.0] and len(said) == 4


def test_the_last_save_waits_for_room(saver, monkeypatch):
    saver, said, clock, folder = saver
    break_folder(folder)
    monkeypatch.setattr(saver, "_sleep", lambda seconds: mend_folder(folder))
    saver.finish(7, saver.test_call(7))
    assert checkpoints.steps(folder.parent) == [7]


def test_who_has_no_time_tries_once(saver):
    saver, said, clock, folder = saver
    break_folder(folder)
    assert not saver.save_now(7, saver.test_call(7))
    assert clock.slept == [] and len(said) == 1
    mend_folder(folder)
    assert saver.save_now(7, saver.test_call(7))


def test_a_disk_that_is_full_is_noticed_without_waiting(saver):
    """Files may grow to 64 kB, the parameters are 256: tensorstore's own write fails, in the background."""
    saver, said, clock, folder = saver
    checkpointer = saver._checkpointer
    assert saver.save_now(1, saver.test_call(1))
    big = jax.random.normal(jax.random.key(0), (256, 256))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
        assert saver.save(2, lambda: checkpointer.save(state(2)._replace(params={"w": big}), DATA, {})), "it began"
        while checkpointer.is_saving:
            time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not saver.due(2) and "saving step 2 failed" in said[-1] and "File too large" in said[-1]
    assert "the newest checkpoint is that of step 1" in said[-1]
    assert checkpoints.steps(folder.parent) == [1], "absent, not half there"
    assert saver.save_now(2, saver.test_call(2)) and checkpoints.steps(folder.parent) == [1, 2]
    assert not [path for path in folder.iterdir() if "tmp" in path.name], "what the failed save left is gone"


def test_states_saved_are_the_states_restored(saver):
    saver, *_ = saver
    saver.save_now(3, saver.test_call(3))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda: state(0))
    restored = saver._checkpointer.restore(abstract, jax.tree.map(lambda _: one, abstract), DATA)
    assert all(
        (np.asarray(a) == np.asarray(b)).all()
        for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state(3)), strict=True)
    )


def test_processes_meet_before_a_checkpoint_is_given_its_name(monkeypatch):
    """Where Orbax's threads of all processes wait for each other, by the names that it gives to these places."""
    from orbax.checkpoint._src.multihost import multihost

    met = []
    monkeypatch.setattr(save_barriers.together, "combined", lambda what, *_: met.append(what))
    for place in ("async_write_complete", "async_commit_complete", "ThreadSaveMultiHostValueHolder:set_value_start"):
        key = multihost.unique_barrier_key(place, prefix="", suffix="30")
        save_barriers.Barriers().in_background(key=key, timeout_ms=1)
    assert met == ["saved _async_write_complete.30", "saved _async_commit_complete.30"]


def test_orbax_waits_at_our_barriers_while_it_saves(monkeypatch):
    """Its own do not learn of a failure; it looks them up where `in_foreground` puts ours."""
    from orbax.checkpoint._src.multihost import multihost

    met, barriers = [], save_barriers.Barriers()
    monkeypatch.setattr(save_barriers.together, "several", lambda: True)
    monkeypatch.setattr(save_barriers.together, "combined", lambda what, text, combine, turn: met.append((what, turn)))
    monkeypatch.setattr(multihost, "should_skip_process_sync", lambda processes: False)
    turn = barriers.next_turn()
    with barriers.in_foreground():
        for name in ("save_start", "create_tmp_directory:post", "save_start"):
            multihost.sync_global_processes(name, processes={0, 1})
    assert met == [
        ("saved save_start/1", turn),
        ("saved create_tmp_directory:post/1", turn),
        ("saved save_start/2", turn),
    ]
