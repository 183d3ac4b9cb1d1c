"""Real `t5x-lite` processes on this machine: several of them compute, read and save what one does."""

import jax
import pytest
from npz_runs import flags, run, train_losses, write_rows
from processes import job

from t5x_lite import checkpoints

FLOAT64 = {"T5Config.dtype": "float64", "T5Config.param_dtype": "float64"}
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    write_rows(path, 80)
    return path


def in_one_process(folder, arguments, dtype="float64", **more):
    with jax.enable_x64(dtype == "float64"):
        assert run(folder, *arguments, **more) == 0
    return train_losses(folder)


def x64(dtype):
    return {"JAX_ENABLE_X64": str(int(dtype == "float64"))}


def test_two_processes_train_as_one_does_and_one_goes_on_from_what_they_saved(rows, tmp_path):
    expected = in_one_process(tmp_path / "one", flags(rows, **FLOAT64, TRAIN_STEPS=22))
    arguments = flags(rows, "{'data': 1, 'fsdp': 2}", **FLOAT64, TRAIN_STEPS=20, **{"train.save_every": 10})
    with job(tmp_path / "logs", 2, *arguments, f"--model_dir={tmp_path / 'two'}", environment=x64("float64")) as two:
        two.done()
        for i in range(2):
            assert f"process {i} of 2 on " in two.log(i).splitlines()[4]
            assert "1 of 2 devices (cpu, cpu); coordinator 127.0.0.1:" in two.log(i)
        assert "step 20/20" in two.log(0) and "step" not in two.log(1)
    assert train_losses(tmp_path / "two") == pytest.approx(expected[:20], abs=TOLERANCE["float64"])
    assert checkpoints.steps(tmp_path / "two") == [10, 20]
    on = in_one_process(tmp_path / "two", flags(rows, **FLOAT64, TRAIN_STEPS=22))
    assert on == pytest.approx(expected, abs=TOLERANCE["float64"])


def test_who_differs_stops_all_with_one_line(rows, tmp_path):
    with job(tmp_path / "logs", 2, *flags(rows), f"--model_dir={tmp_path / 'run'}", "--gin.TRAIN_STEPS=2",
             each={1: ["--gin.BATCH_SIZE=16"]}) as two:
        assert two.wait() == [2, 2]
        for i in range(2):
            (line,) = two.errors(i)
            assert line == ("the processes are not alike: process 1 has BATCH_SIZE = 16, process 0 8; start all of them "
                            "with the same command and code")
    assert not (tmp_path / "run").exists()
