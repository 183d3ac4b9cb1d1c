"""Whole runs that meet trouble: told to stop, fed with poison, out of room, killed. What they then do is what the
undisturbed run does."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from npz_runs import TOKENS, flags, run, steps_seen, train_losses, write_rows

import gin
from t5x_lite import checkpoints, losses, plots, run_folder
from t5x_lite.partitioning import leaves_by_path

pytestmark = pytest.mark.slow  # each run costs some ten seconds


@gin.configurable(module="tests")
@dataclasses.dataclass(frozen=True)
class PoisonedLoss(losses.Loss):
    """Is no number where a target is the poisonous token, and a large one where `spike` is set."""

    spike: float | None = None

    def sums(self, logits, targets, weights):
        sums = super().sums(logits, targets, weights)
        bad = (targets == TOKENS).any()
        worse = jnp.nan if self.spike is None else self.spike * sums["loss"]
        return {**sums, "loss": jnp.where(bad, worse, sums["loss"])}


@pytest.fixture(scope="module", autouse=True)
def no_compilation_cache_of_the_user():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5X_LITE_COMPILATION_CACHE", "off")
        yield


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """(flags, losses of the undisturbed run of 40 steps)."""
    folder = tmp_path_factory.mktemp("healthy")
    write_rows(folder / "rows.npz", 80)
    arguments = flags(folder / "rows.npz")
    assert run(folder / "run", *arguments, TRAIN_STEPS=40) == 0
    return arguments, train_losses(folder / "run")


@contextlib.contextmanager
def when(condition, act):
    """Runs act() in a thread as soon as condition() holds."""
    over = threading.Event()

    def wait():
        while not over.is_set():
            if condition():
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_sigterm_saves_where_it_stands_and_the_next_start_goes_on(healthy, tmp_path, capsys):
    arguments, expected = healthy
    with when(lambda: steps_seen(tmp_path) >= 7, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert run(tmp_path, *arguments, TRAIN_STEPS=40) == 75
    (saved,) = checkpoints.steps(tmp_path)
    assert 7 <= saved < 40, "not a step at which a save was due"
    captured = capsys.readouterr()
    assert f"told to stop: step {saved} is saved" in captured.out and "started again, it goes on" in captured.err
    assert run(tmp_path, *arguments, TRAIN_STEPS=40) == 0
    assert train_losses(tmp_path) == expected


def test_another_run_in_the_folder_and_another_configuration_are_refused(healthy, tmp_path, capsys):
    arguments, expected = healthy
    assert run(tmp_path, *arguments, TRAIN_STEPS=3) == 0
    with run_folder.lock(tmp_path):
        assert run(tmp_path, *arguments, TRAIN_STEPS=4) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    assert run(tmp_path, *arguments, **{"TRAIN_STEPS": 4, "NpzSource.seed": 5}) == 2
    assert "NpzSource.seed (0 then, 5 now)" in capsys.readouterr().err
    assert train_losses(tmp_path) == expected[:3], "nothing was written"
    assert run(tmp_path, *arguments, "--allow_config_change", **{"TRAIN_STEPS": 4, "NpzSource.seed": 5}) == 0
    out = capsys.readouterr().out
    assert "changed since step 3: TRAIN_STEPS (3 then, 4 now)" in out and "NpzSource.seed (0 then, 5 now)" in out
    assert train_losses(tmp_path)[:3] == expected[:3] and train_losses(tmp_path)[3] != expected[3]


# --- Poison ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """Flags of runs over five batches an epoch, one of which has a poisonous row."""
    folder = tmp_path_factory.mktemp("poisoned")
    write_rows(folder / "rows.npz", 40, poisoned=[29])
    return flags(folder / "rows.npz", **{"train.loss": "@PoisonedLoss()"})


@pytest.fixture(scope="module")
def skipping(poisoned, tmp_path_factory):
    """The folder of a run of 10 steps that leaves the poisonous updates out."""
    folder = tmp_path_factory.mktemp("skipping")
    assert run(folder, *poisoned, **{"TRAIN_STEPS": 10, "train.save_every": 1, "Keep.last": "None"}) == 0
    return folder


def bad_steps(folder):
    return [step for step, loss in enumerate(train_losses(folder), 1) if not np.isfinite(loss)]


def test_an_update_from_no_numbers_is_left_out_and_counted(skipping):
    bad = bad_steps(skipping)
    assert len(bad) == 2 and bad[0] <= 5 < bad[1], "once an epoch"
    steps, skipped = plots.read_metrics(skipping)["train/skipped_updates"]
    assert dict(zip(steps, skipped))[10] == 2
    assert checkpoints.steps(skipping) == [step for step in range(1, 11) if step not in bad], "of healthy states alone"
    params = checkpoints.load_for_inference(skipping)[1]
    assert all(np.isfinite(leaf).all() for leaf in leaves_by_path(params).values())


def test_too_many_of_them_stop_the_run(poisoned, skipping, tmp_path, capsys):
    assert run(tmp_path, *poisoned, **{"TRAIN_STEPS": 10, "Health.max_bad_steps": 1}) == 2
    assert f"bad steps in a row up to step {bad_steps(skipping)[0]} " in capsys.readouterr().err


ROLL_BACK = {"TRAIN_STEPS": 12, "train.save_every": 1, "Health.max_bad_steps": 1, "Health.action": "roll_back"}


def test_or_it_goes_back_and_on_with_other_data(poisoned, skipping, tmp_path, capsys):
    assert run(tmp_path, *poisoned, **ROLL_BACK) == 0
    out = capsys.readouterr().out
    back = out.count("back to step")
    assert back >= 2, "the poison is met in each epoch"
    found = train_losses(tmp_path)
    assert len(found) == 12 and np.isfinite(found).all(), "what was taken back is not in the records"
    first = bad_steps(skipping)[0]
    assert found[: first - 1] == train_losses(skipping)[: first - 1]
    positions = checkpoints.read_positions(checkpoints.find_step(tmp_path))
    assert (positions[:, 0] * 10 + positions[:, 1]).tolist() == [2 * (12 + back)] * 4, "the bad batches are skipped"


def test_a_run_that_went_back_is_the_same_run_when_it_is_stopped_in_between(poisoned, tmp_path):
    assert run(tmp_path / "whole", *poisoned, **ROLL_BACK) == 0
    for steps in (2, 5, 8, 12):
        assert run(tmp_path / "parts", *poisoned, **{**ROLL_BACK, "TRAIN_STEPS": steps}) == 0
    assert train_losses(tmp_path / "parts") == train_losses(tmp_path / "whole")


def test_spikes_by_choice(poisoned, skipping, tmp_path, capsys):
    first = next(step for step in bad_steps(skipping) if step > 3)
    spiky = {
        "TRAIN_STEPS": 12,
        "train.save_every": 1,
        "PoisonedLoss.spike": 50.0,
        "Health.max_bad_steps": 1,
        "Health.spike_window": 3,
        "Health.spike_deviations": 6.0,
    }
    assert run(tmp_path, *poisoned, **spiky) == 2
    out, err = capsys.readouterr()
    assert f"step {first}: its loss of" in out and "is a spike" in out and "bad steps in a row" in err
    assert max(checkpoints.steps(tmp_path)) == first - 1, "what the spike did is in no checkpoint"


# --- SIGKILL ---------------------------------------------------------------------------------------------------------

KILLS, STEPS = 24, 400


def start(folder, arguments):
    # One device: what is killed here is the process.
    environment = {**os.environ, "T5X_LITE_COMPILATION_CACHE": "off", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "t5x_lite", *arguments, f"--model_dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_somewhere(kind, process, folder, rng):
    """Sends SIGKILL at a random moment of one kind; False where the run ended before."""
    begun, seen = time.monotonic(), steps_seen(folder)
    wait, steps = rng.uniform(0, 12), rng.randint(0, 20)
    saving = set()
    while process.poll() is None:
        if kind == "any time" and time.monotonic() - begun > wait:
            break
        if kind == "first step" and steps_seen(folder) != seen:
            break
        if kind == "stepping" and steps_seen(folder) > seen + steps:
            break
        if kind == "saving":
            now = {path.name for path in (folder / "checkpoints").glob("*tmp*")}
            if now - saving and rng.random() < 0.5:
                time.sleep(rng.uniform(0, 0.03))
                break
            saving |= now
        time.sleep(0.001)
    else:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def test_killed_again_and_again_a_run_is_the_undisturbed_run(tmp_path):
    write_rows(tmp_path / "rows.npz", 80)
    arguments = flags(tmp_path / "rows.npz", "{'data': 1}", **{"TRAIN_STEPS": STEPS, "train.save_every": 5})
    assert start(tmp_path / "whole", arguments).wait() == 0
    rng, kinds = random.Random(1), ["first step", "saving", "stepping", "saving", "any time", "saving"]
    killed, at = [], []
    while len(killed) < KILLS:
        kind = kinds[len(killed) % len(kinds)]
        process = start(tmp_path / "killed", arguments)
        assert kill_somewhere(kind, process, tmp_path / "killed", rng), f"ended, {process.returncode}, after {killed}"
        half = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("*tmp*"))
        killed.append(kind)
        at.append((kind, checkpoints.steps(tmp_path / "killed")[-1:], half))
    print(*at, sep="\n")
    assert sum(bool(half) for _, _, half in at) >= 4, "some were killed inside a save"
    assert start(tmp_path / "killed", arguments).wait() == 0
    assert train_losses(tmp_path / "killed") == train_losses(tmp_path / "whole")
    last = [checkpoints.load_for_inference(tmp_path / name)[1] for name in ("killed", "whole")]
    for a, b in zip(*(leaves_by_path(tree).values() for tree in last), strict=True):
        np.testing.assert_array_equal(a, b)
