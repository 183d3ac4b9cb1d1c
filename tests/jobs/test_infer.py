"""The infer job on a real checkpoint of a tiny model with a tiny sentencepiece vocabulary."""

import functools
import io
import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from infer_runs import INFER, MAX_LENGTH, WORDS, expected, log_likelihoods, read, save, sentences, write
from tiny_models import random_params

import gin
from t5x_lite import decoding, inference
from t5x_lite.errors import UserError
from t5x_lite.jobs import infer as job
from t5x_lite.models import Model, T5Config
from t5x_lite.vocabularies import ByteVocabulary


def test_lines_in_lines_out_in_order(tiny, checkpoint, tmp_path):
    odd = ["", "  two  spaces ", "line\u2028separator\x0b\x85", "naïve ⁇ 日本", "<extra_id_0> fox"]
    texts = [*sentences(300), *odd]
    out = tmp_path / "out.jsonl"
    assert job.infer(checkpoint, write(tmp_path / "in.txt", texts), out, **INFER) == 0
    records = read(out)
    assert records == expected(tiny, texts)
    assert len({r["prediction"] for r in records}) > 20
    assert set(os.listdir(tmp_path)) == {"in.txt", "out.jsonl"}


def test_formats_and_fields_mean_the_same(tiny, checkpoint, tmp_path):
    texts = sentences(9, seed=1)
    want = expected(tiny, texts)
    cases = {
        "crlf.txt": ("\r\n".join(texts) + "\r\n", {}),
        "no_end.txt": ("\n".join(texts), {}),
        "mark.txt": ("\ufeff" + "\n".join(texts), {}),
        "first.tsv": ("".join(f"{t}\tx\ty\n" for t in texts), {}),
        "named.tsv": ("id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)), {"input_field": "text"}),
        "plain.jsonl": ("".join(json.dumps({"input": t, "n": 1}) + "\n" for t in texts), {}),
        "named.jsonl": ("".join(json.dumps({"q": t, "input": 3}) + "\n" for t in texts), {"input_field": "q"}),
        "strange.dat": ("".join(f"{t}\tx\n" for t in texts), {"input_format": "tsv"}),
    }
    for name, (content, arguments) in cases.items():
        (tmp_path / name).write_bytes(content.encode("utf-8"))
        out = tmp_path / (name + ".out")
        assert job.infer(checkpoint, tmp_path / name, out, **INFER, **arguments) == 0
        assert read(out) == want, name


def test_stdin_to_stdout(tiny, checkpoint, monkeypatch, capsysbinary):
    texts = sentences(10, seed=2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    assert job.infer(checkpoint, "-", "-", **INFER) == 0
    out = capsysbinary.readouterr().out.decode("utf-8")
    assert [json.loads(line) for line in out.splitlines()] == expected(tiny, texts)


def test_malformed_lines_are_records_with_an_error(tiny, checkpoint, tmp_path):
    lines = [
        b'{"input": "the fox"}',
        b"not json",
        b"",
        b'{"text": "x"}',
        b'{"input": 7}',
        b"[1]",
        b'{"input": "\xff\xfe"}',
        b'{"input": "\\ud800 fox"}',
        b"[" * 100_000,
        b'{"input": "a dog"}',
    ]
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert job.infer(checkpoint, path, out, **INFER) == 8
    records = read(out)
    assert [records[0], records[9]] == expected(tiny, ["the fox", "a dog"])
    said = [
        "not JSON",
        "not JSON",
        "no field 'input'",
        "not a string",
        "not a JSON object",
        "not UTF-8 at byte 12",
        "lone surrogate",
        "not JSON",
    ]
    for record, line, message in zip(records[1:9], lines[1:9], said, strict=True):
        assert set(record) == {"input", "error"} and message in record["error"]
        if message != "lone surrogate":
            assert record["input"] == line.decode("utf-8", errors="replace")
    assert records[7]["input"] == "\ud800 fox"
    # tsv and txt
    (tmp_path / "in.tsv").write_bytes(b"a\tthe fox\nshort\n\xff\ta\n")
    assert job.infer(checkpoint, tmp_path / "in.tsv", tmp_path / "tsv", mode="score", **INFER) == 2
    assert ["error" in r for r in read(tmp_path / "tsv")] == [False, True, True]
    (tmp_path / "in.txt").write_bytes(b"caf\xe9\nfox")
    assert job.infer(checkpoint, tmp_path / "in.txt", tmp_path / "txt", **INFER) == 1
    assert read(tmp_path / "txt")[0] == {"input": "caf\ufffd", "error": "not UTF-8 at byte 4"}


def test_long_inputs_are_cut_and_say_so(tiny, checkpoint, tmp_path):
    vocabulary = tiny[2]
    one = "fox"
    while len(vocabulary.encode(one)) < 18:
        one += " a"
    n = len(vocabulary.encode(one)) + 1  # with EOS
    texts = [one, one + " fox over"]
    out = tmp_path / "out.jsonl"
    job.infer(checkpoint, write(tmp_path / "in.txt", texts), out, **INFER | {"max_input_length": n})
    fits, cut = expected(tiny, texts, n)
    assert read(out) == [fits, {**cut, "truncated": True}]


def test_score_mode(tiny, checkpoint, tmp_path):
    inputs, targets = sentences(20, seed=3), sentences(20, seed=4)
    lines = ["question\tx\tanswer", *(f"{i}\tx\t{t}" for i, t in zip(inputs, targets, strict=True))]
    out = tmp_path / "out.jsonl"
    fields = {"input_field": "question", "target_field": "answer"}
    assert job.infer(checkpoint, write(tmp_path / "in.tsv", lines), out, mode="score", **INFER, **fields) == 0
    exact = log_likelihoods(tiny, list(zip(inputs, targets)))
    for i, record in enumerate(read(out)):
        assert record == {"input": inputs[i], "target": targets[i], "score": pytest.approx(exact[i], abs=1e-3)}
    # the default fields, and a target that is too long
    (tmp_path / "in.jsonl").write_text(json.dumps({"input": inputs[0], "target": " ".join(WORDS)}))
    job.infer(checkpoint, tmp_path / "in.jsonl", tmp_path / "cut", mode="score", max_target_length=8, **INFER)
    assert read(tmp_path / "cut")[0]["truncated"] is True


def test_score_of_a_prediction_is_its_score(checkpoint, tmp_path):
    """Where the prediction's text encodes back to its ids; bytes always do."""
    model = Model(
        T5Config(
            vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
        )
    )
    params = random_params(model.config, seed=7)
    ids = jnp.arange(259)
    letters_and_eos = jnp.where(ids == 1, 3.0, (ids >= 100) & (ids < 125))
    params["decoder"]["logits_dense"]["kernel"] *= letters_and_eos
    path = save(tmp_path / "bytes", model, params, ByteVocabulary(0))
    source = write(tmp_path / "in.txt", sentences(20))
    job.infer(path, source, tmp_path / "predicted", **INFER)
    predicted = read(tmp_path / "predicted")
    again = write(tmp_path / "in.jsonl", [json.dumps(r) for r in predicted])
    job.infer(path, again, tmp_path / "scored", mode="score", target_field="prediction", **INFER)
    ended = 0
    for p, s in zip(predicted, read(tmp_path / "scored"), strict=True):
        if len(p["prediction"]) < MAX_LENGTH:
            ended += 1
            assert s["score"] == pytest.approx(p["score"], abs=1e-3)
    assert ended


def test_sampling_depends_on_the_line_not_on_the_batch(checkpoint, tmp_path):
    source = write(tmp_path / "in.txt", ["the quick fox"] * 140)
    runs = []
    for batch_size in (8, 24):
        settings = INFER | {"batch_size": batch_size, "decoder": decoding.Decoder(MAX_LENGTH, "sample")}
        job.infer(checkpoint, source, tmp_path / str(batch_size), **settings)
        runs.append([r["prediction"] for r in read(tmp_path / str(batch_size))])
    assert runs[0] == runs[1] and len(set(runs[0])) > 10


def test_few_programs_compile(checkpoint, tmp_path, monkeypatch):
    shapes = set()
    padded = inference.Answerer._padded

    def watch(self, rows, max_length):
        array = padded(self, rows, max_length)
        shapes.add(array.shape)
        return array

    monkeypatch.setattr(inference.Answerer, "_padded", watch)
    source = write(tmp_path / "in.txt", sentences(200))
    job.infer(checkpoint, source, tmp_path / "out", **INFER | {"max_input_length": 20})
    assert shapes == {(8, 16), (8, 20)}


def test_dry_run_says_what_would_run(tiny, checkpoint, tmp_path, capsys):
    model, params, vocabulary = tiny
    out = tmp_path / "out"
    assert job.infer(checkpoint, write(tmp_path / "in.txt", ["fox"]), out, dry_run=True, **INFER) == 0
    said = capsys.readouterr().out
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for part in ("8 device(s)", f"{count:,} parameters", repr(vocabulary), "step 3", "max_length=6"):
        assert part in said
    assert os.listdir(tmp_path) == ["in.txt"]


def test_progress_goes_to_stderr(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job.monitor, "Progress", functools.partial(job.monitor.Progress, every_seconds=0.0))
    job.infer(checkpoint, write(tmp_path / "in.txt", ["fox"] * 256), tmp_path / "out", **INFER)
    captured = capsys.readouterr()
    assert captured.out == "" and "infer: 128 lines (50 %), " in captured.err and " lines/s, ETA 0:0" in captured.err
    assert captured.err.endswith(f"infer: 256 lines -> {tmp_path / 'out'}\n")


def test_mistakes_are_one_line_with_the_remedy(tiny, checkpoint, tmp_path):
    model, params, vocabulary = tiny
    source, out = write(tmp_path / "in.txt", ["fox"]), tmp_path / "out"
    table = write(tmp_path / "in.tsv", ["a\tb"])
    bare = save(tmp_path / "bare", model, params, None)
    cases = [
        ({"checkpoint": tmp_path / "nowhere"}, "nowhere"),
        ({"input": tmp_path / "none.txt"}, "none.txt.*infer.input"),
        ({"input": tmp_path}, "infer.input"),
        ({"input": write(tmp_path / "x.dat", ["a"])}, "infer.input_format"),
        ({"input_format": "xml"}, "infer.input_format"),
        ({"input_field": "q"}, "infer.input_field"),
        ({"input": table, "input_field": "q"}, "no column 'q'.*'a', 'b'"),
        ({"mode": "score"}, "no targets"),
        ({"mode": "guess"}, "infer.mode"),
        ({"mode": "rank"}, "no choices to rank.*infer.choices"),
        ({"mode": "rank", "choices": "yes,no"}, "infer.choices must be a list"),
        ({"mode": "rank", "choices": []}, "infer.choices must be a list"),
        ({"choices": ["yes", "no"]}, 'infer.choices is for infer.mode="rank"'),
        ({"decoder_prefix": ["so"]}, "infer.decoder_prefix must be one text"),
        ({"mode": "rank", "choices": ["yes"], "decoder_prefix": "so"}, "infer.decoder_prefix is for"),
        ({"batch_size": 0}, "infer.batch_size"),
        ({"batch_size": 9}, "infer.batch_size=9.*multiple"),
        ({"max_input_length": 1}, "infer.max_input_length"),
        ({"output": source, "overwrite": True}, "is the input"),
        ({"output": tmp_path / "in.txt" / "out"}, "Cannot write.*infer.output"),
        ({"vocabulary": ByteVocabulary(200)}, "459 ids.*infer.vocabulary"),
        ({"checkpoint": bare}, "carries no vocabulary.*infer.vocabulary"),
    ]
    for arguments, message in cases:
        arguments = {"checkpoint": checkpoint, "input": source, "output": out, **INFER} | arguments
        with pytest.raises(UserError) as caught:
            job.infer(**arguments)
        line, *rest = str(caught.value).splitlines()  # gin adds where it was called from
        assert re.search(message, line) and all("In call to configurable" in more for more in rest)
    assert (tmp_path / "in.txt").read_text() == "fox\n"
    job.infer(bare, source, out, vocabulary=vocabulary, **INFER)
    assert len(read(out)) == 1


def test_unsound_weights_are_an_error_not_a_nan(tiny, tmp_path):
    model, params, vocabulary = tiny
    path = save(tmp_path / "nan", model, jax.tree.map(lambda leaf: leaf * jnp.nan, params), vocabulary)
    assert job.infer(path, write(tmp_path / "in.txt", ["fox"]), tmp_path / "out", **INFER) == 1
    assert "nan" in read(tmp_path / "out")[0]["error"]


def test_gin_binds_it(tiny, checkpoint, tmp_path):
    source, out = write(tmp_path / "in.txt", ["the fox"]), tmp_path / "out"
    gin.parse_config_file("t5x_lite/gin/runs/infer.gin")
    gin.parse_config(
        f"infer.checkpoint = '{checkpoint}'\ninfer.input = '{source}'\ninfer.output = '{out}'\n"
        f"BATCH_SIZE = 8\nDecoder.max_length = {MAX_LENGTH}\ninfer.max_input_length = 64"
    )
