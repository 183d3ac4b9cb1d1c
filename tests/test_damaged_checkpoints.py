"""Whatever happens to the newest checkpoint's files, a run gets the bits that were saved, or an older checkpoint."""

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import tempfile

import jax
import numpy as np
import pytest
from saved_states import DATA, ONE, is_step, restore, save_run, state

from t5x_lite import checkpoints, stored
from t5x_lite.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints of steps 1 and 2."""
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def files(folder):
    return sorted(path for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file())


def flip(path, rng):
    raw = bytearray(path.read_bytes())
    if raw:
        raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(raw))


def truncate(path, rng):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * rng.random())])


def remove(path, rng):
    path.unlink()


@pytest.mark.parametrize("harm", [flip, truncate, remove])
def test_any_harm_to_any_file_is_found_out_or_does_no_harm(run, harm):
    rng = np.random.default_rng(5)
    passed_over = 0
    for path in files(run):
        kept = path.read_bytes()
        harm(path, rng)
        restored, warnings = restore(run)
        if is_step(restored, 2):
            assert warnings == [], path
            path.write_bytes(kept)
            continue
        passed_over += 1
        assert is_step(restored, 1), path
        assert len(warnings) == 1 and "checkpoints/2 is damaged" in warnings[0] and "from step 1" in warnings[0]
        aside = run / "checkpoints" / "damaged-2"
        assert aside.is_dir() and checkpoints.steps(run) == [1], "its step can be saved again"
        aside.rename(run / "checkpoints" / "2")
        path.write_bytes(kept)
    assert is_step(restore(run)[0], 2)
    assert passed_over >= 4, "files of arrays, of positions and of the description are among them"


def test_a_flipped_bit_that_no_reader_notices_is_found_by_the_checksum(run, monkeypatch):
    """The arrays as they come from Orbax, one bit changed on the way."""
    genuine = checkpoints.ocp.StandardCheckpointer.restore

    def flipped(self, folder, target=None, **kwargs):
        found = genuine(self, folder, target, **kwargs)
        if str(folder).endswith("2/params"):
            bits = np.asarray(found["a"]).view(np.uint32).copy()
            bits[17, 3] ^= 1
            found["a"] = jax.device_put(bits.view(np.float32), ONE)
        return found

    monkeypatch.setattr(checkpoints.ocp.StandardCheckpointer, "restore", flipped)
    restored, warnings = restore(run)
    assert is_step(restored, 1) and "params a differ from what was written" in warnings[0]


@pytest.mark.parametrize("step", [1, 2])
def test_garbled_notes_of_orbax_are_no_loss(run, step):
    notes = run / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    assert '"metrics": {}' in notes.read_text()
    notes.write_text('{"performance_metrics": [], "init_timestamp_nsecs": "x"}')
    restored, warnings = restore(run)
    assert is_step(restored, 2) and not warnings


def test_a_missing_item_is_damage(run):
    for item in checkpoints.ITEMS:
        aside = run / "checkpoints" / "2" / item
        aside.rename(run / item)
        restored, warnings = restore(run)
        assert is_step(restored, 1) and len(warnings) == 1, item
        (run / "checkpoints" / "damaged-2").rename(run / "checkpoints" / "2")
        (run / item).rename(aside)


def test_a_run_without_an_intact_checkpoint_does_not_begin_anew(run):
    for step in (1, 2):
        (run / "checkpoints" / str(step) / "meta" / "metadata").write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint in .* is intact .*/2 is damaged.*/1 is damaged"):
            restore(run)


def test_half_a_checkpoint_is_none(run):
    """What a killed save leaves is under another name, is no checkpoint to any reader, and goes."""
    left = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    shutil.copytree(run / "checkpoints" / "2", left)
    assert checkpoints.steps(run) == [1, 2] and checkpoints.find_step(run).name == "2"
    restored, warnings = restore(run)
    assert is_step(restored, 2) and not warnings and not left.exists()


def test_inference_says_that_its_checkpoint_is_damaged(run):
    path = run / "checkpoints" / "2" / "meta" / "metadata"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(UserError, match="2 is damaged: its description is not as it was written"):
        checkpoints.load_for_inference(run)


# --- What is no damage ------------------------------------------------------------------------------------------------


@pytest.fixture
def everybodys_run(whole):
    """As `run`, but where another user could go, which pytest's own folders do not allow."""
    with tempfile.TemporaryDirectory(prefix="t5x-lite-tests-") as folder:
        shutil.copytree(whole, pathlib.Path(folder) / "run")
        for path in [pathlib.Path(folder), *pathlib.Path(folder).rglob("*")]:
            path.chmod(0o777)
        yield pathlib.Path(folder) / "run"


@contextlib.contextmanager
def forbidden(path):
    """Nobody may read the file, and the superuser, who may, is nobody for a while."""
    superuser = os.geteuid() == 0
    path.chmod(0)
    if superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
        path.chmod(0o777)


def test_a_file_that_may_not_be_read_is_not_damaged(everybodys_run):
    kinds = set()
    for path in files(everybodys_run):
        with forbidden(path):
            try:
                restored, warnings = restore(everybodys_run)
            except stored.Unreadable as e:
                assert re.search("permission.denied.*nothing says that it is damaged", str(e), re.IGNORECASE), path
                kinds.add(path.name if path.parent.name != "d" else "array")
            else:
                assert is_step(restored, 2) and not warnings, path
    assert kinds >= {"metadata", "_METADATA", "manifest.ocdbt", "array"}
    assert is_step(restore(everybodys_run)[0], 2)


def test_the_best_checkpoint_is_not_forgotten_because_it_cannot_be_read_now(everybodys_run):
    description = everybodys_run / "checkpoints" / "1" / "meta" / "metadata"
    with forbidden(description), pytest.raises(stored.Unreadable, match="1/meta cannot be read"):
        checkpoints.Checkpointer(everybodys_run, checkpoints.Keep(best=1, metric="eval/x/accuracy"))
    description.write_text("{")
    with checkpoints.Checkpointer(everybodys_run, checkpoints.Keep(best=1, metric="eval/x/accuracy")) as checkpointer:
        assert checkpointer.steps() == [1, 2], "a damaged one has no metrics"


def test_damage_that_cannot_be_set_aside_is_said(everybodys_run):
    (everybodys_run / "checkpoints" / "2" / "meta" / "metadata").write_text("{")
    (everybodys_run / "checkpoints").chmod(0o555)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="2 is damaged and cannot be renamed to damaged-2 .*ermission denied"):
            restore(everybodys_run)
    finally:
        if superuser:
            os.seteuid(0)
        (everybodys_run / "checkpoints").chmod(0o777)


def test_too_many_open_files_are_not_damage(run):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with checkpoints.Checkpointer(run) as checkpointer:
        abstract = jax.eval_shape(lambda: state(0))
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
            with pytest.raises(stored.Unreadable, match="Too many open files"):
                checkpointer.restore(abstract, jax.tree.map(lambda _: ONE, abstract), DATA)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert is_step(restore(run)[0], 2)


def wrapped(problem):
    """As Orbax does."""
    try:
        raise Exception("Encountered error while reading array index") from problem
    except Exception as e:
        return e


@pytest.mark.parametrize(
    "problem",
    [
        ConnectionResetError("by peer"),
        TimeoutError("timed out"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.EIO, "Input/output error"),
        MemoryError(),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"),
        ValueError("UNAVAILABLE: CURL error Could not connect to server"),
        ValueError("DEADLINE_EXCEEDED: all retries"),
        RuntimeError("whatever it is"),
    ],
)
def test_what_is_in_the_way_is_not_damage(problem):
    assert not stored.is_damage(problem) and not stored.is_damage(wrapped(problem))


@pytest.mark.parametrize(
    "problem",
    [
        ValueError("Expecting value: line 1 column 1"),
        KeyError("tree_metadata"),
        FileNotFoundError("manifest.ocdbt"),
        ValueError("DATA_LOSS: CRC-32C mismatch"),
        ValueError("NOT_FOUND: no .zarray"),
        NotADirectoryError("d"),
    ],
)
def test_what_is_missing_or_garbled_is(problem):
    assert stored.is_damage(problem) and stored.is_damage(wrapped(problem))
