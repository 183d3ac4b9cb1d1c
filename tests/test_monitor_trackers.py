"""Metrics in Weights & Biases and MLflow, the real packages, offline: one run there for one run here."""

import importlib.util
import json
import math
import struct

import npz_runs
import pytest

from t5x_lite import monitor
from t5x_lite.errors import UserError


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    package = pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return package


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    package = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return package


def fail(text):
    raise AssertionError(text)


def open_all(trackers, folder, say=fail):
    others = monitor.beside(trackers, folder, {"BATCH_SIZE": "8"}, say)
    return monitor.MetricsWriter(folder, resume_step=0, others=others)


def log_records(data):
    """The records of a log in LevelDB's format, after W&B's own seven bytes: blocks of 32 KiB, in each of them pieces
    of records with a check sum (4 bytes), a length (2) and a kind: whole, first, middle or last (1)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := -at % 32768) and left < 7:
            at += left
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def wandb_runs(folder):
    """Of each start: (id, [(step, values)], configuration), from the files that W&B left."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        name, history, config = None, [], {}
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                name = record.run.run_id
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.WhichOneof("record_type") == "history":
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                history.append((values.pop("step"), {k: v for k, v in values.items() if not k.startswith("_")}))
        runs.append((name, history, config))
    return runs


def test_a_run_goes_on_in_the_same_run_of_wandb(wandb, tmp_path):
    for steps in ((1, 2), (3,)):
        with open_all([monitor.WandB()], tmp_path / "mine") as writer:
            for step in steps:
                writer.write(step, {"train/loss": 1.0 / step, "train/tokens": math.nan})
    (first, history, config), (second, more, _) = wandb_runs(tmp_path / "mine")
    assert first == second
    assert [step for step, _ in history] == [1, 2] and [step for step, _ in more] == [3]
    assert history[1][1]["train/loss"] == 0.5 and config["BATCH_SIZE"] == "8"


def test_a_run_goes_on_in_the_same_run_of_mlflow(mlflow, tmp_path):
    uri = (tmp_path / "store").as_uri()
    for steps in ((1, 2), (3,)):
        with open_all([monitor.MLflow(uri, experiment="tried")], tmp_path / "mine") as writer:
            for step in steps:
                writer.write(step, {"train/loss": 1.0 / step, "eval/tsv:a,b/accuracy": 50.0})
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tried").experiment_id])
    assert run.info.run_name == "mine" and run.info.status == "FINISHED" and run.data.params == {"BATCH_SIZE": "8"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert len(client.get_metric_history(run.info.run_id, "eval/tsv:a_b/accuracy")) == 3


@pytest.mark.slow
def test_a_trained_run_is_there_as_in_its_own_file(wandb, mlflow, tmp_path):
    npz_runs.write_rows(tmp_path / "rows.npz", 32)
    folder, uri = tmp_path / "run", (tmp_path / "store").as_uri()
    writers = {"WRITERS": "[@WandB(), @MLflow()]", "MLflow.tracking_uri": uri}
    for steps in (2, 3):
        flags = npz_runs.flags(tmp_path / "rows.npz", **writers)
        assert npz_runs.run(folder, *flags, TRAIN_STEPS=steps) == 0
    losses = list(enumerate(npz_runs.train_losses(folder), 1))
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("t5x-lite").experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == losses
    runs = wandb_runs(folder)
    assert len({name for name, _, _ in runs}) == 1
    assert [(step, v["train/loss"]) for _, history, _ in runs for step, v in history] == losses


@pytest.mark.parametrize("tracker, extra", [(monitor.WandB, "wandb"), (monitor.MLflow, "mlflow")])
def test_a_package_that_is_not_there(tracker, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs the package {extra}: pip install 't5x-lite\[{extra}\]', or leave it"):
        tracker()


def test_a_server_that_is_not_there(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="MLflow: .*see to MLflow.tracking_uri, or leave it out of WRITERS"):
        open_all([monitor.MLflow("http://127.0.0.1:9")], tmp_path)
    assert not (tmp_path / "trackers.json").exists()


def test_what_fails_later_is_said_once_and_the_files_have_it(tmp_path):
    class Unreachable:
        """As a network that is gone in the middle of a run."""

        def open(self, model_dir, values):
            return self

        def write(self, *unused):
            raise ConnectionError("the network is down")

        flush = close = rewind = write

    said = []
    with open_all([Unreachable()], tmp_path, said.append) as writer:
        for step in (1, 2):
            writer.write(step, {"train/loss": 1.0})
    assert said == ["warning: Unreachable takes no metrics (the network is down); metrics.jsonl has them"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
