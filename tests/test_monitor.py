"""What a run shows: rates, the progress display, tables, pictures."""

import io
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import monitor, plots
from t5x_lite.errors import UserError

# --- rates -----------------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when told to: the arithmetic of rates is what is under test."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_rates_and_mfu():
    clock = Clock()
    meter = monitor.Meter(flops_per_step=3e12, peak_flops_per_second=10e12, clock=clock)
    assert meter.window() == {} and meter.total() == {}
    with meter.waiting():
        clock.now += 7  # before the first step: start-up, not waiting
    clock.now += 60
    meter.step(tokens=999)  # compiled and ran: starts the clock
    assert meter.window() == {}
    for tokens in (100, 200):
        with meter.waiting():
            clock.now += 0.25
        clock.now += 0.75
        meter.step(tokens=tokens)
    assert meter.window() == pytest.approx(
        {"tokens_per_second": 150, "steps_per_second": 1, "data_wait_fraction": 0.25, "mfu": 0.3}
    )
    assert meter.window() == {}  # nothing since
    clock.now += 0.5
    meter.step(tokens=600)
    assert meter.window() == pytest.approx(
        {"tokens_per_second": 1200, "steps_per_second": 2, "data_wait_fraction": 0, "mfu": 0.6}
    )
    assert meter.total() == pytest.approx(
        {
            "tokens_per_second": 360,
            "steps_per_second": 1.2,
            "data_wait_fraction": 0.2,
            "mfu": 0.36,
            "seconds": 2.5,
            "steps": 3,
            "tokens": 900,
        }
    )


def test_evaluation_is_not_training_time():
    clock = Clock()
    meter = monitor.Meter(clock=clock)
    meter.step(tokens=1)
    clock.now += 1
    with meter.paused():
        clock.now += 100
    clock.now += 1
    meter.step(tokens=10)
    assert meter.window() == pytest.approx({"tokens_per_second": 5, "steps_per_second": 0.5, "data_wait_fraction": 0})


def test_a_wait_behind_a_running_step_is_no_wait():
    clock = Clock()
    meter = monitor.Meter(clock=clock)
    meter.step(tokens=1)
    done = jnp.zeros(())
    done.block_until_ready()
    # Long enough to be still running when asked: the devices are busy, the data is not what they wait for.
    running = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda _, y: jnp.tanh(y @ y), x))(jnp.ones((1024, 1024)))
    with meter.waiting(in_flight=running):
        clock.now += 1
    with meter.waiting(in_flight=done):
        clock.now += 2
    clock.now += 1
    meter.step(tokens=1)
    assert not running.is_deleted()
    assert meter.window()["data_wait_fraction"] == 0.5  # 2 of 4 seconds
    running.block_until_ready()


def test_an_exhausted_stream_ends_the_loop_as_usual():
    meter = monitor.Meter()
    with pytest.raises(StopIteration):
        with meter.waiting():
            next(iter([]))


def test_lagged_reads_older_steps_only():
    lagged = monitor.Lagged(lag=2)
    assert lagged.newest is None
    assert lagged.push(1, {"loss": jnp.float32(1)}) == []
    assert lagged.push(2, {"loss": jnp.float32(2)}) == []
    newest = jnp.float32(3)
    assert lagged.push(3, {"loss": newest}) == [(1, {"loss": 1.0})]
    assert lagged.newest is newest
    assert lagged.drain() == [(2, {"loss": 2.0}), (3, {"loss": 3.0})]
    assert lagged.drain() == [] and lagged.newest is None
    with pytest.raises(ValueError, match="lag"):
        monitor.Lagged(lag=0)


def test_lagged_does_not_look_at_the_step_just_dispatched():
    class Unfinished:
        """A value that cannot be had yet: any look at it would stop the pipeline."""

        def __getattr__(self, name):
            raise AssertionError(f"{name} of an unfinished step was read")

        def __float__(self):
            raise AssertionError("an unfinished step was waited for")

    lagged = monitor.Lagged()
    assert lagged.push(1, {"loss": jnp.float32(1)}) == []
    assert lagged.push(2, {"loss": Unfinished()}) == [(1, {"loss": 1.0})]
    with pytest.raises(AssertionError, match="unfinished"):
        lagged.drain()


# --- the terminal ----------------------------------------------------------------------------------------------------

METRICS = {
    "train/loss": 5.1234,
    "train/tokens_per_second": 12345.0,
    "train/mfu": 0.412,
    "train/data_wait_fraction": 0.003,
}


def test_plain_lines_are_sparse():
    clock, file = Clock(), io.StringIO()
    with monitor.TrainingProgress(1000, file=file, every_seconds=10, clock=clock, started=clock.now - 5) as progress:
        for step in range(1, 31):
            clock.now += 1
            progress.update(step, METRICS if step % 10 == 0 else {"loss": 6.0})
        progress.note("saved step 30")
    found = file.getvalue().splitlines()
    assert found[0] == "first loss 6.0000 after 6.0 s (step 1)"
    assert found[1] == "step 1/1,000  loss 6.0000  ETA --"
    assert found[2].startswith("step 11/1,000  loss 6.0000  12.3k tokens/s  MFU 41.2 %  data wait 0.3 %  ETA 16:29")
    assert found[3].startswith("step 21/1,000")
    assert found[4] == "saved step 30"
    assert found[5].startswith("step 30/1,000  loss 5.1234")  # close shows where it stopped
    assert len(found) == 6
    assert "\x1b" not in file.getvalue() and "\r" not in file.getvalue()


def test_plain_lines_by_steps_and_the_last_one_once():
    file = io.StringIO()
    with monitor.TrainingProgress(25, 4, file=file, every_steps=10) as progress:
        for step in range(5, 26):
            progress.update(step, {"loss": math.nan})
        assert file.getvalue().splitlines()[-1].startswith("step 25/25")  # at once, not when the run is closed
    assert [line.split()[1] for line in file.getvalue().splitlines()[1:]] == ["5/25", "10/25", "20/25", "25/25"]
    assert "loss nan" in file.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    clock, file = Clock(), Terminal()
    progress = monitor.TrainingProgress(10_000, file=file, clock=clock)
    assert "compiling" in file.getvalue()
    clock.now += 8
    progress.update(1, {"loss": 10.4})
    assert "first loss 10.4000 after 8.0 s" in file.getvalue()
    clock.now += 0.01
    drawn = len(file.getvalue())
    progress.update(2, {"loss": 10.3})
    assert len(file.getvalue()) == drawn  # too soon to draw again
    clock.now += 1
    progress.update(102, METRICS)
    text = file.getvalue()
    assert "step 102/10,000  loss 5.1234  12.3k tokens/s  MFU 41.2 %  data wait 0.3 %  ETA 1:39" in text
    assert "\x1b[2K" in text and "━" in text  # a line that is drawn again
    progress.note("saved [step] 102")
    after_note = file.getvalue()[len(text) :]
    assert "saved [step] 102\n" in after_note and "━" in after_note.split("saved [step] 102\n")[1]  # the bar below it
    progress.close()
    progress.close()
    assert file.getvalue().endswith("\x1b[?25h")  # the cursor is visible again


def test_a_dumb_terminal_and_other_processes_get_no_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "dumb")
    file = Terminal()
    with monitor.TrainingProgress(2, file=file) as progress:
        progress.update(1, {"loss": 1.0})
    assert file.getvalue().splitlines()[1:] == ["step 1/2  loss 1.0000  ETA --"]
    silent = Terminal()
    with monitor.TrainingProgress(2, file=silent, terminal=True, enabled=False) as progress:
        progress.update(1, {"loss": 1.0})
        progress.note("hidden")
    assert silent.getvalue() == ""


@pytest.mark.parametrize("seconds, text", [(5, "0:05"), (59.6, "1:00"), (3723, "1:02:03"), (183845, "2d 03:04:05")])
def test_durations(seconds, text):
    assert monitor.duration(seconds) == text


@pytest.mark.parametrize(
    "value, text",
    [(0.5, "0.5"), (999, "999"), (1000, "1k"), (12345.6, "12.3k"), (999_999, "1M"), (4.3e12, "4.3T"), (2.5e16, "25P")],
)
def test_short_numbers(value, text):
    assert monitor.short_number(value) == text


def test_tables():
    table = monitor.Table(["parameter", "size", "mean"], title="Parameters")
    table.add("embedding", 16_449_536, 0.123456).add("a|b", 12, None)
    assert str(table).splitlines() == [
        "Parameters",
        "parameter        size    mean",
        "---------  ----------  ------",
        "embedding  16,449,536  0.1235",
        "a|b                12",
    ]
    assert table.markdown().splitlines() == [
        "**Parameters**",
        "",
        "| parameter |       size |   mean |",
        "| --------- | ---------: | -----: |",
        "| embedding | 16,449,536 | 0.1235 |",
        "| a\\|b      |         12 |        |",
    ]
    assert len(str(monitor.Table(["empty", "table"])).splitlines()) == 2
    with pytest.raises(ValueError, match="2 cells for 3 columns"):
        table.add("x", 1)


# --- pictures --------------------------------------------------------------------------------------------------------


def test_read_metrics_of_a_run_that_is_writing(tmp_path):
    with monitor.MetricsWriter(tmp_path) as writer:
        writer.write(20, {"train/loss": 2.0})
        writer.write(10, {"train/loss": 3.0, "eval/x/loss": 4.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "na')
    found = plots.read_metrics(tmp_path)
    assert found.keys() == {"train/loss", "eval/x/loss"}
    steps, values = found["train/loss"]
    assert steps.tolist() == [10, 20] and values.tolist() == [3.0, 2.0]
    assert steps.dtype == np.int64 and values.dtype == np.float64
    assert plots.read_metrics(tmp_path / "nothing here") == {}


def test_smooth_is_a_centred_mean_of_finite_values():
    np.testing.assert_allclose(plots.smooth([1, 2, 6, 4, 5], 3), [1.5, 3, 4, 5, 4.5])
    np.testing.assert_allclose(
        plots.smooth([1, math.nan, 3, math.inf, math.nan, math.nan, 7], 3), [1, 2, 3, 3, math.nan, 7, 7]
    )
    np.testing.assert_allclose(plots.smooth([1, 2], 1), [1, 2])


def test_a_picture_of_two_runs(tmp_path):
    from matplotlib import image

    rng = np.random.default_rng(0)
    for label, floor in (("short", 2.0), ("diverged", 2.5)):
        with monitor.MetricsWriter(tmp_path / label) as writer:
            for step in range(10, 400, 10):
                lost = label == "diverged" and step > 300
                writer.write(step, {"train/loss": math.nan if lost else floor + 20 / step + 0.2 * rng.normal()})
            writer.write(200, {"eval/c4/loss": floor + 0.1})
    plots.plot_losses({name: tmp_path / name for name in ("short", "diverged")}, tmp_path / "new" / "losses.png")
    picture = image.imread(tmp_path / "new" / "losses.png")
    assert picture.shape[:2] == (660, 1080)
    drawn = [np.abs(picture[..., :3] * 255 - color).max(-1) < 2 for color in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E))]
    assert all(pixels.sum() > 500 for pixels in drawn)  # both runs, in matplotlib's first two colours
    at_the_axis = [pixels[595:612].sum() for pixels in drawn]
    assert at_the_axis[0] == 0 and at_the_axis[1] > 20  # a cross where the second one is lost


def test_no_loss_no_picture(tmp_path):
    with pytest.raises(UserError, match="no run holds a loss"):
        plots.plot_losses({"empty": tmp_path}, tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


# --- imports ---------------------------------------------------------------------------------------------------------


def test_no_tensorflow_even_when_events_are_written(tmp_path):
    program = """
import sys
import t5x_lite.monitor, t5x_lite.plots, t5x_lite.flops
heavy = {"tensorflow", "matplotlib", "tensorboard", "seqio", "rich"} & set(sys.modules)
assert not heavy, heavy
with t5x_lite.monitor.MetricsWriter(sys.argv[1], resume_step=0) as writer:
    writer.write(1, {"train/loss": 1.0})
assert "tensorboard" in sys.modules
t5x_lite.plots.plot_losses({"run": sys.argv[1]}, sys.argv[1] + "/losses.png")
assert "tensorflow" not in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
