"""The page of runs: what it says of real ones, and that a browser shows it."""

import html
import json
import re
import shutil
import subprocess

import pytest
from npz_runs import write_rows

from t5x_lite import cli, monitor
from t5x_lite.errors import UserError
from t5x_lite.report import runs

MODEL = [
    "--gin_file=models/t5_1_1/mini.gin",
    "--gin.T5Config.emb_dim=32",
    "--gin.T5Config.mlp_dim=32",
    "--gin.T5Config.vocab_size=256",
    "--gin.T5Config.num_encoder_layers=1",
    "--gin.T5Config.num_decoder_layers=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of other learning rates, one of them in two starts; predictions and metrics as evaluation has them."""
    folder = tmp_path_factory.mktemp("runs")
    write_rows(folder / "rows.npz", 64, lengths=(16, 8))

    def train(name, steps, warmup):
        assert (
            cli.main(
                [
                    "train",
                    "--gin_file=runs/train_npz.gin",
                    *MODEL,
                    f"--gin.NPZ_PATTERN={folder}/rows.npz",
                    "--gin.BATCH_SIZE=8",
                    f"--gin.TRAIN_STEPS={steps}",
                    f"--gin.WARMUP_STEPS={warmup}",
                    "--gin.train.log_every=1",
                    f"--model_dir={folder}/{name}/run",
                ]
            )
            == 0
        )

    train("slow", 3, 100)
    train("slow", 5, 100)
    train("fast", 5, 10)
    for name, values in (("slow", (3.0, 9.0, 6.0)), ("fast", (1.0, float("nan"), 2.0))):
        with monitor.MetricsWriter(folder / name / "run") as writer:
            for step, value in zip((1, 2, 3), values, strict=True):
                writer.write(step, {"eval/task/rouge1": value, "eval/task/loss": 10 - value})
    (folder / "fast" / "run" / "samples.jsonl").write_text(
        json.dumps(
            {"step": 3, "task": "task", "inputs": "<b>long</b> " * 200, "targets": "right", "prediction": "wrong"}
        )
        + "\n{"
    )
    (folder / "fast" / "run" / "checkpoints" / "damaged-4").mkdir()
    return folder


@pytest.fixture(scope="module")
def page(folder):
    assert cli.main(["report", f"{folder}/slow/run", f"{folder}/fast/run", f"--output={folder}/page/report.html"]) == 0
    return (folder / "page" / "report.html").read_text()


def cells(page, first):
    """Of the table rows that begin with `first`."""
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    return [row[1:] for row in rows if row and row[0] == first]


def test_runs_are_known_by_what_differs(folder):
    found = runs.read([f"{folder}/slow/run", f"{folder}/fast/run"])
    assert [run.label for run in found] == ["slow", "fast"]
    assert [run.label for run in runs.read([f"{folder}/slow/run"])] == ["run"]
    assert [run.steps for run in found] == [[3, 5], [5]]


def test_the_summary_says_how_far_and_how_often(page):
    (slow,), (fast,) = cells(page, "slow"), cells(page, "fast")
    assert slow[1] == fast[1] == "5" and slow[0] == fast[0] != ""
    assert (slow[-2:], fast[-2:]) == (["2", "3, 5"], ["1", "5"])
    assert float(slow[6]) > 0.01, "GiB in use at the most"


def test_the_best_and_the_newest_of_each_metric(page):
    assert cells(page, "eval/task/rouge1") == [["9", "2", "6", "2", "3", "2"]]
    assert cells(page, "eval/task/loss") == [["1", "2", "4", "8", "3", "8"]], "of a loss the lowest"


def test_what_differs_and_what_is_recorded(page):
    ((slow, fast),) = cells(page, "WARMUP_STEPS")
    assert (slow, fast) == ("100", "10")
    assert not cells(page, "BATCH_SIZE"), "it is the same"
    assert page.count("Recorded by t5x-lite") == 2


def test_predictions_are_shown_as_text_and_cut(page):
    ((inputs, targets, prediction),) = re.findall(
        r"<tr><td>(&lt;b&gt;long[^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page
    )
    assert (targets, prediction) == ("right", "wrong")
    assert html.unescape(inputs) == ("<b>long</b> " * 200)[:600] + " …" and "<b>" not in inputs


def test_faults_and_starts_are_told(page):
    assert page.count("started: step 0 of") == 2 and page.count("started: step 3 of 5") == 1
    assert "damaged-4 was found damaged" in page


def test_parameters_with_their_shapes_and_shardings(page):
    rows = cells(page, "encoder/layers/mlp/wi_0/kernel")
    assert rows == [["1 × 32 × 32", "layers, embed, mlp", "·, fsdp, tensor", "0.003906"]] * 2


def test_the_page_needs_nothing_else(page):
    assert not re.search(r"""(src|href)=["']?(https?:|//|file:)""", page)
    assert page.count("<svg") == 3, "losses, evaluations, training"


def test_mistakes(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="is no folder: give the MODEL_DIR of a run"):
        runs.read([f"{folder}/nothing"])
    with pytest.raises(UserError, match="has neither metrics nor checkpoints"):
        runs.read([str(tmp_path)])
    with pytest.raises(UserError, match="given twice"):
        runs.read([f"{folder}/slow/run", f"{folder}/slow/run"])
    assert cli.main(["report"]) == 2
    assert "name a MODEL_DIR, or several" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's package chromium")
def test_a_browser_shows_it(folder, page):
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{folder}/page/report.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    for text in ("What happened", "best and newest value of each metric", "slow: training", "gradient norm"):
        assert text in shown
    assert shown.count("<svg") == 3
