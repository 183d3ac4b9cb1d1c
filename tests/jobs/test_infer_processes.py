"""Inference over several processes: the answers are those of one, they are written once, and a killed job goes on."""

import json

import pytest
from infer_runs import MAX_LENGTH, expected, read, sentences, write
from job_runs import run
from processes import job

from t5x_lite import text_io
from t5x_lite.jobs.infer import WINDOW

BATCH = 8


@pytest.mark.slow
def test_two_processes_go_on_where_one_was_killed_and_answer_as_it_does(tiny, checkpoint, tmp_path, monkeypatch):
    texts = sentences(WINDOW * BATCH + 12)
    lines = [json.dumps({"input": text}) for text in texts]
    bad = WINDOW * BATCH + 3
    write(tmp_path / "in.jsonl", [*lines[:bad], "not JSON", *lines[bad:]])
    flags = [
        f"--checkpoint={checkpoint}",
        f"--input={tmp_path / 'in.jsonl'}",
        f"--output={tmp_path / 'out.jsonl'}",
        f"--gin.Decoder.max_length={MAX_LENGTH}",
        f"--gin.infer.batch_size={BATCH}",
        "--gin.infer.max_input_length=64",
    ]

    def killed(output):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text_io.FileOutput, "finish", killed)
        assert run("infer", *flags) == 130
    parts = sorted((tmp_path / "out.jsonl.partial").glob("part-*.jsonl"))
    first, second = (read(part) for part in parts)
    parts[1].unlink()
    with job(tmp_path / "logs", 2, "infer", *flags) as started:
        assert started.wait(900) == [1, 1], started  # one line has an error
        assert f"going on after line {len(first)}" in started.log(0)
        assert f"{len(texts) + 1} lines -> " in started.log(0) and "lines" not in started.log(1)
    out = read(tmp_path / "out.jsonl")
    assert out[: len(first)] == first
    assert [record.get("prediction") for record in out[len(first) :]] == [record.get("prediction") for record in second]
    assert "error" in out.pop(bad)
    assert out == expected(tiny, texts)
