"""Object stores in place of a disk: what is written there is whole or absent, and nothing is appended or renamed.

The first part stands on objects in memory. The second one, slow, speaks the stores' own protocols to servers on this
machine: moto's S3 and gcp-storage-emulator's Google Cloud Storage. The stores themselves were never tried.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from t5x_lite import buckets, checkpoints, cli, configuration, monitor, plots, run_folder, text_io
from t5x_lite.data import NpzSource
from t5x_lite.errors import UserError
from t5x_lite.partitioning import leaves_by_path
from t5x_lite.text_files import TextFiles


class Objects(MemoryFileSystem):
    """Objects: no folders of their own, no appending, no renaming."""

    protocol = ("s3",)
    store, pseudo_dirs, cachable = {}, [""], False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("s3://"))

    def _open(self, path, mode="rb", **kwargs):
        assert mode in ("rb", "wb"), f"objects cannot be opened with {mode}"
        file = super()._open(path, mode, **kwargs)
        file.readline = lambda: type(file).readline(file)  # as s3fs and gcsfs have it
        return file

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    makedirs = mkdir

    def mv(self, *args, **kwargs):
        raise AssertionError("objects cannot be renamed")

    rename = cp_file = copy = mv


@pytest.fixture
def bucket(monkeypatch):
    """s3://bucket, of objects in memory."""
    monkeypatch.setattr(Objects, "store", {})
    monkeypatch.setitem(_registry, "s3", Objects)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield epath.Path("s3://bucket")
    backend.fsspec_backend._get_filesystem.cache_clear()


def losses(folder):
    """(steps, values)."""
    return tuple(map(list, plots.read_metrics(folder)["loss"]))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_answers_are_written_in_parts_and_put_together(bucket):
    path, records = bucket / "answers.jsonl", [{"input": f"né {i}"} for i in range(5)]
    first = text_io.FileOutput(path, {"step": 1})
    assert list(first.done()) == []
    first.write(records[:2])
    again = text_io.FileOutput(path, {"step": 1})
    assert list(again.done()) == records[:2]
    again.write(records[2:])
    assert not path.exists()
    again.finish()
    assert [json.loads(line) for line in path.read_text().splitlines()] == records
    assert names(bucket) == ["answers.jsonl"]
    with pytest.raises(UserError, match="exists"):
        text_io.FileOutput(path, {"step": 1})


def test_metrics_are_written_in_parts_and_taken_back(bucket):
    with monitor.MetricsWriter(str(bucket / "run"), part_seconds=0.0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"loss": 4.0 - step})
        writer.rewind(2)
        writer.write(3, {"loss": 0.5})
    assert losses(bucket / "run") == ([1, 2, 3], [3.0, 2.0, 0.5])
    with monitor.MetricsWriter(str(bucket / "run"), resume_step=1) as writer:
        writer.write(2, {"loss": 7.0})
    assert losses(bucket / "run") == ([1, 2], [3.0, 7.0])


def test_metrics_wait_for_a_store_that_does_not_answer(bucket, monkeypatch):
    said = []
    lost = types.new_class(
        "ServerDisconnectedError", (Exception,), exec_body=lambda n: n.update(__module__="aiohttp.x")
    )
    with monitor.MetricsWriter(str(bucket / "run"), part_seconds=0.0, say=said.append) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(Objects, "_open", lambda *args, **kwargs: (_ for _ in ()).throw(lost("gone")))
            writer.write(1, {"loss": 1.0})
        assert "cannot be written (gone)" in said[0]
        writer.write(2, {"loss": 2.0})
    assert losses(bucket / "run") == ([1, 2], [1.0, 2.0])
    with pytest.raises(ZeroDivisionError), buckets.survived():
        raise ZeroDivisionError


def test_a_run_says_that_its_folder_is_not_locked_and_whose_it_was(bucket, capsys, monkeypatch):
    for before in ("nobody", f"process {os.getpid()} on "):
        with run_folder.lock(bucket / "run"):
            assert f"cannot be locked, it was last used by {before}" in capsys.readouterr().out
    run_folder.write_whole(bucket / "run" / "config.gin", "text")
    assert (bucket / "run" / "config.gin").read_text() == "text" and names(bucket / "run") == ["config.gin", "lock"]
    monkeypatch.setattr(Objects, "_open", lambda *args, **kwargs: (_ for _ in ()).throw(PermissionError("Forbidden")))
    with pytest.raises(UserError, match=r"MODEL_DIR = s3://bucket/run cannot be written to \(Forbidden\)"):
        with run_folder.lock(bucket / "run"):
            pass


def test_lines_of_objects_are_read_and_a_changed_object_is_read_anew(bucket, tmp_path):
    (bucket / "data" / "b.tsv").write_text("one\ttwo\nthree\tfour\n")
    (bucket / "data" / "a.tsv").write_text("five\tsix\n")
    files = TextFiles(train="tsv:s3://bucket/data/*.tsv", held_out=0, index_folder=str(tmp_path))

    def inputs():
        records = files.open_split("train")
        return [record["inputs"].decode() for record in records.__getitems__(range(len(records)))]

    assert inputs() == ["five", "one", "three"]
    (bucket / "data" / "a.tsv").write_text("x\tseven8\n"[:9])
    assert inputs() == ["x", "one", "three"], "its size is what it was"
    with pytest.raises(UserError, match="no such file"):
        TextFiles(train="tsv:s3://bucket/absent.tsv", index_folder=None).open_split("train")


def write_rows(path, n=24):
    """Rows of bytes, as ByteVocabulary has them."""
    rng, rows = np.random.default_rng(0), io.BytesIO()
    inputs, targets = rng.integers(3, 259, (n, 8)), rng.integers(3, 259, (n, 6))
    np.savez(
        rows,
        encoder_input_tokens=inputs,
        decoder_input_tokens=np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        decoder_target_tokens=targets,
        decoder_loss_weights=np.ones_like(targets),
    )
    epath.Path(path).write_bytes(rows.getvalue())


def test_rows_are_read_from_objects(bucket):
    for name in "ab":
        write_rows(bucket / "rows" / f"{name}.npz")
    blocks = NpzSource("s3://bucket/rows/*.npz").open()
    assert len(list(blocks.block(0, 0))) == 12
    assert len(list(NpzSource("s3://bucket/rows/a.npz").open().block(0, 0))) == 6
    with pytest.raises(UserError, match="no such file"):
        NpzSource("s3://bucket/rows/c.npz").open()


def test_a_checkpoint_is_there_when_its_last_object_is(bucket):
    for step in (2, 4):
        for item in checkpoints.ITEMS:
            (bucket / "run" / "checkpoints" / str(step) / item / "file").write_text("")
        assert checkpoints.steps(bucket / "run") == ([2] if step == 4 else []), "half of it is none"
        assert not checkpoints.is_step(bucket / "run" / "checkpoints" / str(step))
        (bucket / "run" / "checkpoints" / str(step) / buckets.COMMITTED).write_text("")
        assert checkpoints.is_step(bucket / "run" / "checkpoints" / str(step))
    assert checkpoints.find_step(bucket / "run").name == "4"


@pytest.mark.parametrize(
    "path, says",
    [
        ("gs://bucket/run", "gs://bucket/run needs gcsfs: pip install 't5x-lite[gs]'"),
        ("s3://bucket/run", "s3://bucket/run needs s3fs: pip install 't5x-lite[s3]'"),
        ("hdfs://bucket/run", "hdfs://bucket/run: no such kind of path; there are local ones, gs:// and s3://"),
    ],
)
def test_what_a_path_needs_is_said_before_anything_is_done(path, says, monkeypatch, capsys):
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    infer = ["infer", "--input=a.txt", "--output=b.jsonl"]
    for argv in (
        [*infer, f"--checkpoint={path}"],
        [*infer, f"--checkpoint=local,{path}"],
        ["cache", "--task=mine", "--output_dir=b", f"--gin.TextFiles.train='tsv:{path}'"],
    ):
        configuration.clear()
        assert cli.main(argv) == 2
        assert says in capsys.readouterr().err
    buckets.check(["http://x", "a: s3://x", {"x": 1, "y": (None, 2.0)}])


def test_tensorstore_goes_where_s3fs_goes(monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    place = {"driver": "s3", "bucket": "b", "path": "run/1"}
    assert buckets.s3_kvstore("s3://b/run/1") == place
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert buckets.s3_kvstore("s3://b/run/1") == {**place, "aws_region": "eu-west-1"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:9000")
    assert buckets.s3_kvstore("s3://b/run/1") == {**place, "aws_region": "eu-west-1", "endpoint": "http://host:9000"}


# --- The stores' protocols --------------------------------------------------------------------------------------------

INSTALL = "pip install 'moto[server]' s3fs gcp-storage-emulator gcsfs"
# For this process and those it starts: where the servers are, and that nobody need be asked who one is.
ENVIRONMENT = {
    "s3": {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "{url}",
    },
    "gs": {
        "STORAGE_EMULATOR_HOST": "{url}",
        "TENSORSTORE_GCS_HTTP_URL": "{url}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "x",
        "NO_GCE_CHECK": "true",
    },
}
SERVE = {
    "s3": """
import time, urllib.request
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
host, port = server.get_host_and_port()
url = f"http://{host}:{port}"
urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"))
print(url, flush=True)
time.sleep(3600)
""",
    # The emulator leaves out a header that the store sends, and by which tensorstore knows what it writes over.
    "gs": """
import socket, time
from gcp_storage_emulator.handlers import objects
genuine = objects.download
def download(request, response, storage, *args, **kwargs):
    try:
        object = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = object["generation"]
    except Exception:
        pass  # there is no such object, as the handler will say
    return genuine(request, response, storage, *args, **kwargs)
objects.download = download
from gcp_storage_emulator.server import create_server
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()
print(f"http://127.0.0.1:{port}", flush=True)
time.sleep(3600)
""",
}


@pytest.fixture(scope="module", params=["s3", "gs"])
def store(request):
    """A scheme whose bucket `bucket` is served here by another process.

    One in all: tensorstore asks only once where it is.
    """
    for module in ({"s3": ("moto", "s3fs"), "gs": ("gcp_storage_emulator", "gcsfs")})[request.param]:
        pytest.importorskip(module, reason=f"{INSTALL} (an environment of its own will do)")
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVE[request.param]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        url = next(line.strip() for line in server.stdout if line.startswith("http"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT[request.param].items():
                patch.setenv(name, value.format(url=url))
            backend.fsspec_backend._get_filesystem.cache_clear()
            buckets.prepare()
            yield request.param
    finally:
        backend.fsspec_backend._get_filesystem.cache_clear()
        server.kill()
        server.wait()


def flags(top):
    """Of a run so small that its steps take milliseconds, on rows below `top`."""
    sizes = dict(
        emb_dim=16, mlp_dim=16, head_dim=8, num_heads=2, vocab_size=384, num_encoder_layers=1, num_decoder_layers=1
    )
    return [
        "train",
        "--gin_file=models/t5_1_1/mini.gin",
        "--gin_file=runs/train_npz.gin",
        f"--gin.NPZ_PATTERN={top}/rows.npz",
        *(f"--gin.T5Config.{name}={value}" for name, value in sizes.items()),
        "--gin.BATCH_SIZE=8",
        "--gin.MESH={'data': 1}",
        "--gin.train.log_every=1",
        "--gin.train.save_every=2",
        "--gin.WARMUP_STEPS=100",
        "--gin.Keep.last=2",
        "--gin.NpzSource.vocabulary=@ByteVocabulary()",
        f"--model_dir={top}/run",
    ]


def run(*arguments):
    configuration.clear()
    try:
        return cli.main(list(arguments))
    finally:
        configuration.clear()


def start(arguments):
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.Popen([sys.executable, "-P", "-m", "t5x_lite", *arguments], env=environment)


def train_losses(top):
    steps, values = plots.read_metrics(f"{top}/run")["train/loss"]
    return dict(zip(map(int, steps), values))


def fill(top):
    write_rows(f"{top}/rows.npz", 80)
    (epath.Path(top) / "lines.tsv").write_text("".join(f"question {i}\tanswer {i}\n" for i in range(20)))
    (epath.Path(top) / "in.txt").write_text("one line\nand another\n")


def evaluate(top):
    assert (
        run(
            "eval",
            "--gin_file=runs/eval.gin",
            f"--gin.MIXTURE_OR_TASK_NAME=tsv:{top}/lines.tsv",
            f"--model_dir={top}/run",
            "--gin.TextFiles.held_out=0.5",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 16}",
        )
        == 0
    )
    return {name: values for name, (_, values) in plots.read_metrics(f"{top}/run").items() if name.startswith("eval/")}


def infer(top):
    assert (
        run(
            "infer",
            f"--checkpoint={top}/run",
            f"--input={top}/in.txt",
            f"--output={top}/out.jsonl",
            "--gin.Decoder.max_length=6",
        )
        == 0
    )
    return (epath.Path(top) / "out.jsonl").read_text()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_disk(store, tmp_path):
    """Trained, killed in a save, resumed, evaluated and asked: data, checkpoints, metrics and answers in the bucket."""
    remote, here = f"{store}://bucket/top", str(tmp_path)
    (tmp_path / "run").mkdir()
    for top in (here, remote):
        fill(top)
    assert start([*flags(here), "--gin.TRAIN_STEPS=6"]).wait() == 0
    killed = start([*flags(remote), "--gin.TRAIN_STEPS=4000"])
    folder = epath.Path(remote) / "run" / "checkpoints"
    while killed.poll() is None and not checkpoints.steps(folder):
        time.sleep(0.05)
    time.sleep(0.3)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    found = checkpoints.steps(folder)
    for path in folder.iterdir():  # so that there is something left to do
        if path.name.isdigit() and int(path.name) > 2:
            path.rmtree()
    assert found and found[0] == 2
    # Half a checkpoint, as a save that was killed leaves it.
    for item in ("params", "meta"):
        (folder / "4" / item / "_METADATA").write_text("{}")
    assert checkpoints.steps(folder) == [2]
    assert start([*flags(remote), "--gin.TRAIN_STEPS=6"]).wait() == 0
    assert checkpoints.steps(folder) == checkpoints.steps(f"{here}/run") == [4, 6], "older ones are gone"
    assert train_losses(remote) == train_losses(here) and len(train_losses(here)) == 6
    there, own = (leaves_by_path(checkpoints.load_for_inference(f"{top}/run")[1]) for top in (remote, here))
    for name, leaf in own.items():
        np.testing.assert_array_equal(there[name], leaf)
    assert infer(remote) == infer(here)
    assert evaluate(remote) == evaluate(here)


@pytest.mark.slow
def test_a_checkpoint_in_a_bucket_that_is_damaged_is_passed_over(store):
    import saved_states

    folder = epath.Path(f"{store}://bucket/damaged")
    saved_states.save_run(folder)
    restored, warnings = saved_states.restore(folder)
    assert saved_states.is_step(restored, 2) and not warnings
    (folder / "checkpoints" / "2" / "params" / "manifest.ocdbt").write_bytes(b"junk")
    restored, (warning,) = saved_states.restore(folder)
    assert saved_states.is_step(restored, 1) and "checkpoints/2 is damaged" in warning
    assert (folder / "checkpoints" / "damaged-2" / "meta" / "metadata").exists()
    assert checkpoints.steps(folder) == [1]
