"""One run at a time in a folder, and what it means stays what it was."""

import dataclasses
import subprocess
import sys

import pytest

from t5x_lite import data, run_folder
from t5x_lite.errors import UserError
from t5x_lite.models import T5Config

CONFIG = T5Config(
    vocab_size=8, emb_dim=8, num_heads=1, head_dim=8, mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1
)
SOURCE = data.NpzSource("rows.npz", seed=1)

HOLD = """
import sys, time
from t5x_lite import run_folder
from etils import epath
with run_folder.lock(epath.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_run_is_refused_until_the_first_one_is_dead(tmp_path):
    first = subprocess.Popen([sys.executable, "-P", "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*another MODEL_DIR"):
            with run_folder.lock(tmp_path):
                pass
    finally:
        first.kill()  # SIGKILL: it cannot tidy up
        first.wait()
    with run_folder.lock(tmp_path):
        with pytest.raises(UserError, match="in use"), run_folder.lock(tmp_path):
            pass
    with run_folder.lock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="MODEL_DIR = .* cannot be written to"):
        with run_folder.lock(tmp_path / "file" / "run"):
            pass


def check(meaning, bindings=None, allowed=False, before_bindings=None):
    before = {"step": 7, "meaning": run_folder.meaning(CONFIG, SOURCE, BATCH_SIZE=8), "bindings": before_bindings or {}}
    said = []
    run_folder.check_unchanged(before, meaning, bindings or {}, allowed, said.append)
    return said


def test_the_same_configuration_says_nothing():
    assert check(run_folder.meaning(CONFIG, dataclasses.replace(SOURCE), BATCH_SIZE=8)) == []


@pytest.mark.parametrize(
    "model, source, batch_size, named",
    [
        (dataclasses.replace(CONFIG, mlp_dim=16), SOURCE, 8, r"T5Config.mlp_dim \(8 then, 16 now\)"),
        (CONFIG, dataclasses.replace(SOURCE, seed=2), 8, r"NpzSource.seed \(1 then, 2 now\)"),
        (CONFIG, dataclasses.replace(SOURCE, pattern="other.npz"), 8, "NpzSource.pattern"),
        (CONFIG, SOURCE, 16, r"BATCH_SIZE \(8 then, 16 now\)"),
    ],
)
def test_what_changes_the_meaning_needs_leave(model, source, batch_size, named):
    now = run_folder.meaning(model, source, BATCH_SIZE=batch_size)
    with pytest.raises(UserError, match=f"step 7 .* with another {named}.*--allow_config_change"):
        check(now)
    (line,) = check(now, allowed=True)
    assert line.startswith("changed since step 7: ")


def test_other_changes_are_told():
    unchanged = run_folder.meaning(dataclasses.replace(CONFIG, remat="full"), SOURCE, BATCH_SIZE=8)
    said = check(unchanged, {"TRAIN_STEPS": "20", "new": "1"}, before_bindings={"TRAIN_STEPS": "10", "old": "2"})
    assert said == ["changed since step 7: TRAIN_STEPS (10 then, 20 now)"]


def test_equal_mappings_are_equal_in_any_order():
    orders = {"inputs": 1, "targets": 2}, {"targets": 2, "inputs": 1}
    one, other = (data.SeqioSource("x", lengths) for lengths in orders)
    assert run_folder.meaning(CONFIG, one) == run_folder.meaning(CONFIG, other)


def test_a_file_is_old_or_new(tmp_path):
    path = tmp_path / "config.gin"
    for text in ("old", "new"):
        run_folder.write_whole(path, text)
        assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["config.gin"]
