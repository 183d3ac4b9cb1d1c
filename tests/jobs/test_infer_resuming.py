"""An infer job that was stopped goes on where it was, or says why it cannot."""

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from infer_runs import INFER, MAX_LENGTH, read, sentences, train_vocabulary, write

from t5x_lite import decoding, text_io
from t5x_lite.errors import UserError
from t5x_lite.jobs import infer as job


class Stop(Exception):
    pass


def interrupted(monkeypatch, after_parts, *args, **kwargs):
    """Runs the job until it has written so many parts, then lets it die as if killed."""
    write_part = text_io.FileOutput.write
    written = []

    def write(self, records):
        if len(written) == after_parts:
            raise Stop
        write_part(self, records)
        written.append(len(records))

    with monkeypatch.context() as m, contextlib.suppress(Stop):
        m.setattr(text_io.FileOutput, "write", write)
        job.infer(*args, **kwargs)
        raise AssertionError("it was to be interrupted")
    return sum(written)


def test_a_killed_job_goes_on_where_it_stopped(checkpoint, tmp_path, monkeypatch):
    texts = sentences(500, seed=5)
    texts[3:3] = ["{not a record"]
    lines = [json.dumps({"input": t}) if t[0] != "{" else t for t in texts]
    source, whole, out = write(tmp_path / "in.jsonl", lines), tmp_path / "whole", tmp_path / "out"
    assert job.infer(checkpoint, source, whole, **INFER) == 1
    done = interrupted(monkeypatch, 2, checkpoint, source, out, **INFER)
    assert 0 < done < len(texts) and not out.exists()
    asked = []
    row = job._Worker._row

    def watch(self, record, line):
        asked.append(record)
        return row(self, record, line)

    monkeypatch.setattr(job._Worker, "_row", watch)
    assert job.infer(checkpoint, source, out, **INFER) == 1  # the error of the first run counts
    assert len(asked) == len(texts) - done
    assert out.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "out.partial").exists()


def test_a_job_is_not_resumed_on_another_input_or_with_other_settings(checkpoint, tmp_path, monkeypatch):
    texts = sentences(300, seed=6)
    source, out = write(tmp_path / "in.txt", texts), tmp_path / "out"
    done = interrupted(monkeypatch, 1, checkpoint, source, out, **INFER)
    part = tmp_path / "out.partial" / text_io._part_name(0)
    before = part.read_bytes()

    changed = write(tmp_path / "changed.txt", [*texts[: done - 1], "changed", *texts[done:]])
    with pytest.raises(UserError, match=f"line {done} of .*overwrite"):
        job.infer(checkpoint, changed, out, **INFER)
    with pytest.raises(UserError, match=f"line {done} of .*overwrite"):
        job.infer(checkpoint, write(tmp_path / "short.txt", texts[: done - 1]), out, **INFER)
    for other in ({"decoder": decoding.Decoder(7)}, {"max_input_length": 32}, {"vocabulary": train_vocabulary(4)}):
        with pytest.raises(UserError, match="made with another .*(max_length|max_input_length|vocabulary).*overwrite"):
            job.infer(checkpoint, source, out, **INFER | other)
    assert part.read_bytes() == before  # nothing was lost by asking

    # A change further down is an input of its own right; another batch size is no other result.
    later = write(tmp_path / "later.txt", [*texts[:done], "changed"])
    job.infer(checkpoint, later, out, **INFER | {"batch_size": 16})
    assert [r["input"] for r in read(out)] == [*texts[:done], "changed"]
    with pytest.raises(UserError, match="exists.*overwrite"):
        job.infer(checkpoint, source, out, **INFER)
    job.infer(checkpoint, source, out, overwrite=True, **INFER)
    assert [r["input"] for r in read(out)] == texts


def test_a_lost_or_damaged_part_is_refused(checkpoint, tmp_path, monkeypatch):
    source, out = write(tmp_path / "in.txt", sentences(300)), tmp_path / "out"
    interrupted(monkeypatch, 2, checkpoint, source, out, **INFER)
    folder = tmp_path / "out.partial"
    first, second = sorted(folder.glob("part-*"))
    content = first.read_bytes()
    first.write_bytes(content[:-9])
    with pytest.raises(UserError, match="lacks the part|damaged"):
        job.infer(checkpoint, source, out, **INFER)
    first.unlink()
    with pytest.raises(UserError, match="lacks the part"):
        job.infer(checkpoint, source, out, **INFER)
    assert second.exists()


@pytest.mark.slow
def test_changed_choices_are_another_input(checkpoint, tmp_path, monkeypatch):
    texts = sentences(300, seed=11)
    lines = [json.dumps({"input": t, "choices": ["fox", "dog"]}) for t in texts]
    rank = INFER | {"mode": "rank"}
    source, out = write(tmp_path / "in.jsonl", lines), tmp_path / "out"
    interrupted(monkeypatch, 1, checkpoint, source, out, **rank)
    changed = write(tmp_path / "new.jsonl", [lines[0].replace("dog", "cat"), *lines[1:]])
    with pytest.raises(UserError, match="line 1 of .*overwrite"):
        job.infer(checkpoint, changed, out, **rank)
    with pytest.raises(UserError, match="made with another choices"):
        job.infer(checkpoint, source, out, **rank, choices=["fox"])
    job.infer(checkpoint, source, out, **rank)
    assert len(read(out)) == 300


BLOCKED = """
    import sys
    for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
        sys.modules[name] = None
    from t5x_lite import decoding
    from t5x_lite.jobs.infer import infer
    checkpoint, source, output = sys.argv[1:]
    sys.exit(infer(checkpoint, source, output, decoder=decoding.Decoder(max_length={max_length}), batch_size=8,
                   max_input_length=64))
"""


def test_runs_without_tensorflow_and_survives_a_kill(checkpoint, tmp_path):
    texts = sentences(4000, seed=7)
    source, out = write(tmp_path / "in.txt", texts), tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(BLOCKED.format(max_length=MAX_LENGTH)),
        str(checkpoint),
        source,
        str(out),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        parts = lambda: sorted((tmp_path / "out.partial").glob("part-*.jsonl"))  # noqa: E731
        while len(parts()) < 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    assert not out.exists() and len(parts()) >= 2
    job.infer(checkpoint, source, tmp_path / "whole", **INFER)
    assert job.infer(checkpoint, source, out, **INFER) == 0
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert [r["input"] for r in read(out)] == texts
