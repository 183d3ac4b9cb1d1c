"""What a run leaves in files, whole also where it dies or the disk is full: metrics.jsonl and TensorBoard events."""

import json
import math
import resource
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import monitor, plots


def lines(folder):
    """Every line of a run's metric files, parsed as strictly as JSON goes (Python's own NaN is refused)."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = "".join(path.read_text() for path in monitor.metrics_files(folder))
    assert not text or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def pairs(folder):
    return [(line["step"], line["name"]) for line in lines(folder)]


@pytest.fixture(params=[True, False], ids=["append", "parts"])
def append(request):
    return request.param


# --- metrics.jsonl ---------------------------------------------------------------------------------------------------


def test_lines_are_as_promised(tmp_path):
    with monitor.MetricsWriter(tmp_path) as writer:
        writer.write(100, {"train/loss": jnp.float32(5.125), "eval/nli/accuracy": np.float64(61.5), "train/mfu": 1})
    assert (tmp_path / "metrics.jsonl").exists()
    found = lines(tmp_path)
    assert [list(line) for line in found] == [["step", "name", "value", "time"]] * 3
    assert [(line["step"], line["name"], line["value"]) for line in found] == [
        (100, "train/loss", 5.125),
        (100, "eval/nli/accuracy", 61.5),
        (100, "train/mfu", 1.0),
    ]
    assert all(1.7e9 < line["time"] < 1e11 for line in found)


def test_a_written_line_is_on_disk_at_once_where_files_grow(tmp_path):
    writer = monitor.MetricsWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": 1.0})
        assert pairs(tmp_path) == [(n, "train/loss") for n in range(1, step + 1)]
    writer.close()


def test_parts_where_files_cannot_grow(tmp_path):
    with monitor.MetricsWriter(tmp_path, append=False, part_seconds=1e9) as writer:
        writer.write(1, {"train/loss": 1.0})
        writer.write(2, {"train/loss": 2.0})
        assert monitor.metrics_files(tmp_path) == []  # they gather ...
        writer.flush()
        assert [path.name for path in monitor.metrics_files(tmp_path)] == ["metrics-0.jsonl"]  # ... into one part
        writer.flush()  # nothing new: no empty part
        for step in range(3, 13):  # more than ten, to see that 10 comes after 9
            writer.write(step, {"train/loss": float(step)})
            writer.flush()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert pairs(tmp_path) == [(step, "train/loss") for step in range(1, 13)]
    with monitor.MetricsWriter(tmp_path, append=False, part_seconds=0) as writer:
        writer.write(13, {"train/loss": 1.0})  # no time to gather: a part at once, under a new number
        assert pairs(tmp_path) == [(step, "train/loss") for step in range(1, 14)]


@pytest.mark.parametrize("value, written", [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_what_json_cannot_say_is_a_string_that_float_reads(tmp_path, value, written):
    with monitor.MetricsWriter(tmp_path) as writer:
        writer.write(1, {"train/loss": np.float32(value)})
    (line,) = lines(tmp_path)
    assert line["value"] == written
    np.testing.assert_equal(plots.read_metrics(tmp_path)["train/loss"][1], [value])


def test_an_array_is_refused_and_nothing_of_its_step_written(tmp_path):
    with monitor.MetricsWriter(tmp_path) as writer:
        with pytest.raises(TypeError, match="train/loss"):
            writer.write(1, {"train/accuracy": 0.5, "train/loss": np.ones(3)})
    assert lines(tmp_path) == []


def test_resume_drops_what_a_dead_run_wrote_after_the_checkpoint(tmp_path, append):
    dead = monitor.MetricsWriter(tmp_path, resume_step=0, append=append, part_seconds=0)
    for step in range(10, 60, 10):
        dead.write(step, {"train/loss": -1.0, "train/mfu": -1.0})
    dead.write(50, {"eval/x/loss": -1.0})  # nobody writes this one again
    last = monitor.metrics_files(tmp_path)[-1]
    last.write_text(last.read_text() + '{"step": 20, "name": "eval/x/lo')  # torn in the middle of a line
    # No close: it died.
    with monitor.MetricsWriter(tmp_path, resume_step=20, append=append, part_seconds=0) as writer:
        for step in range(30, 70, 10):
            writer.write(step, {"train/loss": 1.0, "train/mfu": 1.0})
    expected = [(step, name) for step in range(10, 70, 10) for name in ("train/loss", "train/mfu")]
    assert pairs(tmp_path) == expected
    assert [line["value"] for line in lines(tmp_path)] == [-1.0] * 4 + [1.0] * 8
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing temporary is left


def test_from_scratch_drops_everything_after_step_zero(tmp_path, append):
    for _ in range(2):
        writer = monitor.MetricsWriter(tmp_path, resume_step=0, append=append, part_seconds=0)
        writer.write(0, {"eval/x/loss": 9.0})
        writer.write(5, {"train/loss": 1.0})
    writer.close()
    assert sorted(pairs(tmp_path)) == [(0, "eval/x/loss"), (5, "train/loss")]


def test_writing_a_pair_again_replaces_it(tmp_path, append):
    with monitor.MetricsWriter(tmp_path, append=append, part_seconds=0) as writer:
        writer.write(10, {"eval/x/loss": 1.0, "eval/y/loss": 2.0})
        writer.write(20, {"eval/x/loss": 3.0})
    with monitor.MetricsWriter(tmp_path, append=append, part_seconds=0) as writer:  # evaluated once more
        writer.write(10, {"eval/x/loss": 4.0})
    steps, values = plots.read_metrics(tmp_path)["eval/x/loss"]
    assert steps.tolist() == [10, 20] and values.tolist() == [4.0, 3.0]
    assert len(pairs(tmp_path)) == len(set(pairs(tmp_path))) == 3


def test_without_a_resume_step_only_torn_lines_go(tmp_path):
    with monitor.MetricsWriter(tmp_path) as writer:
        writer.write(10, {"train/loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 11')
    with monitor.MetricsWriter(tmp_path) as writer:
        writer.write(7, {"eval/x/loss": 1.0})
    assert pairs(tmp_path) == [(10, "train/loss"), (7, "eval/x/loss")]


def test_other_processes_write_nothing(tmp_path):
    with monitor.MetricsWriter(tmp_path / "run", enabled=False) as writer:
        writer.write(1, {"train/loss": 1.0})
        writer.flush()
    assert not (tmp_path / "run").exists()


def test_a_full_disk_loses_no_line(tmp_path):
    """/dev/full: every write to it fails as on a full disk."""
    said = []
    path, away = tmp_path / "metrics.jsonl", tmp_path / "away"
    with monitor.MetricsWriter(tmp_path, say=said.append) as writer:
        writer.write(1, {"train/loss": 1.0})
        path.rename(away)
        path.symlink_to("/dev/full")
        for step in (2, 3):
            writer.write(step, {"train/loss": 1.0})
        assert len(said) == 1 and "No space left on device" in said[0]
        path.unlink()
        away.rename(path)
        writer.write(4, {"train/loss": 1.0})
    assert "written again" in said[1] and pairs(tmp_path) == [(step, "train/loss") for step in (1, 2, 3, 4)]


def test_a_disk_that_fills_up_within_a_line_leaves_no_half_of_it(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    said = []
    with monitor.MetricsWriter(tmp_path, say=said.append) as writer:
        writer.write(1, {"train/loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
            writer.write(2, {"train/loss": 1.0})
            assert (tmp_path / "metrics.jsonl").stat().st_size == size and len(said) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.write(3, {"train/loss": 1.0})
    assert pairs(tmp_path) == [(step, "train/loss") for step in (1, 2, 3)]


def test_a_folder_that_vanishes_comes_back(tmp_path, append):
    with monitor.MetricsWriter(tmp_path / "run", append=append, part_seconds=0) as writer:
        writer.write(1, {"train/loss": 1.0})
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("")
        writer.write(2, {"train/loss": 1.0})
        (tmp_path / "run").unlink()
        if not append:
            (tmp_path / "run").mkdir()
        writer.write(3, {"train/loss": 1.0})
    assert pairs(tmp_path / "run") == [(2, "train/loss"), (3, "train/loss")]


def test_going_back_drops_what_came_after(tmp_path, append, monkeypatch):
    with monitor.MetricsWriter(tmp_path, append=append, part_seconds=0) as writer:
        for step in range(1, 6):
            writer.write(step, {"train/loss": -1.0})
        writer.rewind(2)
        assert pairs(tmp_path) == [(1, "train/loss"), (2, "train/loss")]
        for step in range(3, 5):
            writer.write(step, {"train/loss": 1.0})
    assert [line["value"] for line in lines(tmp_path)] == [-1.0, -1.0, 1.0, 1.0]
    events(tmp_path, monkeypatch)  # sets the switch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("train/loss")] == [
        (1, -1.0),
        (2, -1.0),
        (3, 1.0),
        (4, 1.0),
    ]


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(folder, monkeypatch):
    # TensorBoard's switch for its own file reader instead of TensorFlow's, which takes ten seconds to import.
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", sys)
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2

    paths = sorted((folder / "tensorboard").iterdir())
    return [event_pb2.Event.FromString(raw) for path in paths for raw in RawEventFileLoader(str(path)).Load()]


def test_events_can_be_read_by_tensorboard(tmp_path, monkeypatch, append):
    writer = monitor.MetricsWriter(tmp_path, append=append, part_seconds=0)
    writer.write(1, {"train/loss": 2.5, "train/mfu": 0.25})
    writer.write(2, {"train/loss": math.nan})
    found = events(tmp_path, monkeypatch)  # before close: a run can be watched
    writer.close()
    assert found[0].file_version == "brain.Event:2"
    scalars = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    assert scalars[:2] == [(1, "train/loss", 2.5), (1, "train/mfu", 0.25)]
    assert scalars[2][:2] == (2, "train/loss") and math.isnan(scalars[2][2]) and len(scalars) == 3
    assert len(list((tmp_path / "tensorboard").iterdir())) == (1 if append else 2)


def test_tensorboard_hides_events_of_a_dead_run(tmp_path, monkeypatch, append):
    dead = monitor.MetricsWriter(tmp_path, resume_step=0, append=append, part_seconds=0)
    for step in (10, 20, 30):
        dead.write(step, {"train/loss": -1.0})
    with monitor.MetricsWriter(tmp_path, resume_step=20, append=append, part_seconds=0) as writer:
        writer.write(30, {"train/loss": 1.0})
    events(tmp_path, monkeypatch)  # sets the switch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    found = [(event.step, event.value) for event in accumulator.Scalars("train/loss")]
    assert found == [(10, -1.0), (20, -1.0), (30, 1.0)]
