"""The infer job on a real checkpoint of a tiny model with a tiny sentencepiece vocabulary."""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece

from t5x_lite import checkpoints, decoding, text_io
from t5x_lite.errors import UserError
from t5x_lite.jobs import infer as job
from t5x_lite.models import Model, T5Config
from t5x_lite.trainer import TrainState
from t5x_lite.vocabularies import ByteVocabulary, SentencePieceVocabulary

WORDS = "the quick brown fox jumps over a lazy dog while some english text is translated into other words".split()
MAX_LENGTH = 6
INFER = {"decoder": decoding.Decoder(max_length=MAX_LENGTH), "batch_size": 8, "max_input_length": 64}


def sentences(n, seed=0):
    """Texts of 1 to 20 words: two lengths of batches."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 21))) for _ in range(n)]


def train_vocabulary(extra_ids=5) -> SentencePieceVocabulary:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences(200)), model_writer=out, vocab_size=80, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    return SentencePieceVocabulary(out.getvalue(), extra_ids)


@pytest.fixture(scope="module")
def tiny():
    vocabulary = train_vocabulary()
    model = Model(T5Config(vocab_size=vocabulary.vocab_size + 3, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
                           num_encoder_layers=1, num_decoder_layers=1))
    params = jax.tree.map(lambda leaf: leaf * 2.0, model.init(jax.random.key(1)))
    return model, params, vocabulary


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    model, params, vocabulary = tiny
    return save(tmp_path_factory.mktemp("model"), model, params, vocabulary)


def save(model_dir, model, params, vocabulary):
    """As the trainer saves; returns MODEL_DIR."""
    checkpointer = checkpoints.Checkpointer(model_dir, asynchronous=False)
    state = TrainState(jnp.int32(3), params, {"count": jnp.zeros(1)})
    meta = {"model": model.config.to_dict(), "vocabulary": vocabulary.to_dict() if vocabulary else None}
    checkpointer.save(state, {"position": np.zeros(1, np.int64)}, meta)
    checkpointer.close()
    return str(model_dir)


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode("utf-8"))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def expected(tiny, texts, max_input_length=64, max_length=MAX_LENGTH):
    """The records by the plainest route: one batch, one length."""
    model, params, vocabulary = tiny
    tokens = np.zeros((len(texts), max_input_length), np.int32)
    for i, text in enumerate(texts):
        ids = vocabulary.encode(text)[:max_input_length - 1] + [1]
        tokens[i, :len(ids)] = ids
    ids, scores = jax.jit(lambda p, x: decoding.decode(model, p, x, max_length))(params, tokens)
    return [{"input": text, "prediction": vocabulary.decode(row), "score": pytest.approx(float(s), abs=1e-3)}
            for text, row, s in zip(texts, np.asarray(ids), np.asarray(scores), strict=True)]


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
    lines = [b'{"input": "the fox"}', b"not json", b"", b'{"text": "x"}', b'{"input": 7}', b"[1]",
             b'{"input": "\xff\xfe"}', b'{"input": "\\ud800 fox"}', b"[" * 100_000, b'{"input": "a dog"}']
    path, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join(lines))
    assert job.infer(checkpoint, path, out, **INFER) == 8
    records = read(out)
    assert [records[0], records[9]] == expected(tiny, ["the fox", "a dog"])
    said = ["not JSON", "not JSON", "no field 'input'", "not a string", "not a JSON object", "not UTF-8 at byte 12",
            "lone surrogate", "not JSON"]
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
    model, params, vocabulary = tiny
    inputs, targets = sentences(20, seed=3), sentences(20, seed=4)
    lines = ["question\tx\tanswer", *(f"{i}\tx\t{t}" for i, t in zip(inputs, targets, strict=True))]
    out = tmp_path / "out.jsonl"
    fields = {"input_field": "question", "target_field": "answer"}
    assert job.infer(checkpoint, write(tmp_path / "in.tsv", lines), out, mode="score", **INFER, **fields) == 0
    x, y = np.zeros((2, 20, 64), np.int32)
    for i in range(20):
        for array, text in ((x, inputs[i]), (y, targets[i])):
            ids = [*vocabulary.encode(text), 1]
            array[i, :len(ids)] = ids
    logits = jax.jit(model.apply)(params, {"encoder_input_tokens": x, "decoder_target_tokens": y,
                                           "decoder_input_tokens": np.pad(y, ((0, 0), (1, 0)))[:, :-1]})
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for i, record in enumerate(read(out)):
        by_hand = sum(log_probs[i, j, token] for j, token in enumerate(y[i]) if token)
        assert record == {"input": inputs[i], "target": targets[i], "score": pytest.approx(by_hand, abs=1e-3)}
    # the default fields, and a target that is too long
    (tmp_path / "in.jsonl").write_text(json.dumps({"input": inputs[0], "target": " ".join(WORDS)}))
    job.infer(checkpoint, tmp_path / "in.jsonl", tmp_path / "cut", mode="score", max_target_length=8, **INFER)
    assert read(tmp_path / "cut")[0]["truncated"] is True


def test_score_of_a_prediction_is_its_score(checkpoint, tmp_path):
    """Where the prediction's text encodes back to its ids; bytes always do."""
    model = Model(T5Config(vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
                           num_decoder_layers=1))
    params = model.init(jax.random.key(0))
    bias = jnp.where((jnp.arange(259) == 1) | ((jnp.arange(259) >= 100) & (jnp.arange(259) < 125)), 1.0, 0.0)
    params["decoder"]["logits_dense"]["kernel"] = params["decoder"]["logits_dense"]["kernel"] * bias  # letters and EOS
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


def padded(rows):
    out = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for i, row in enumerate(rows):
        out[i, :len(row)] = row
    return out


def tokens(vocabulary, texts):
    return padded([[*vocabulary.encode(text), 1] for text in texts])


@pytest.mark.parametrize("decoder", [
    decoding.Decoder(MAX_LENGTH, "beam", num_beams=3, num_return_sequences=2),
    decoding.Decoder(MAX_LENGTH, "sample", num_return_sequences=3),
], ids=["beam", "sample"])
def test_several_answers_best_first(tiny, checkpoint, tmp_path, decoder):
    model, params, vocabulary = tiny
    texts = sentences(20, seed=8)
    out = tmp_path / "out.jsonl"
    job.infer(checkpoint, write(tmp_path / "in.txt", texts), out, **INFER | {"decoder": decoder})
    run = jax.jit(lambda p, x: decoder(model, p, x))
    ids, scores = map(np.asarray, run(params, tokens(vocabulary, texts)))
    records = read(out)
    for i, record in enumerate(records):
        assert record == {"input": texts[i], "predictions": [
            {"text": vocabulary.decode(row), "score": pytest.approx(float(score), abs=1e-3)}
            for row, score in zip(ids[i], scores[i], strict=True)]}
    assert len({p["text"] for r in records for p in r["predictions"]}) > 20


def test_beams_that_were_not_found_are_left_out(tmp_path):
    """A model that ends every answer at once has one to give."""
    model = Model(T5Config(vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1,
                           num_decoder_layers=1))
    params = model.init(jax.random.key(0))
    kernel = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = jnp.where(jnp.arange(259) == 100, 0.0, kernel - 1e9)
    params["decoder"]["decoder_norm"]["scale"] = jnp.zeros(16).at[0].set(1e-3)
    path = save(tmp_path / "bytes", model, params, ByteVocabulary(0))
    for n in (1, 2):
        decoder = decoding.Decoder(2, "beam", num_beams=2, num_return_sequences=n)
        job.infer(path, write(tmp_path / "in.txt", ["fox"]), tmp_path / str(n), **INFER | {"decoder": decoder})
    (one,), (several,) = read(tmp_path / "1"), read(tmp_path / "2")
    assert several["predictions"][0] == {"text": one["prediction"], "score": one["score"]}
    assert all(p["score"] > -1e7 for p in several["predictions"])


def test_a_prefix_begins_every_prediction(tiny, checkpoint, tmp_path):
    model, params, vocabulary = tiny
    texts, prefix = sentences(20, seed=9), "the lazy"
    ids = vocabulary.encode(prefix)
    assert 1 < len(ids) < MAX_LENGTH
    source = write(tmp_path / "in.txt", texts)
    job.infer(checkpoint, source, tmp_path / "out", **INFER, decoder_prefix=prefix)
    run = jax.jit(lambda p, x, y: decoding.decode(model, p, x, MAX_LENGTH, decoder_prefix=y))
    expected_ids, scores = run(params, tokens(vocabulary, texts), np.array([ids] * 20, np.int32))
    for i, record in enumerate(read(tmp_path / "out")):
        assert record["prediction"] == vocabulary.decode(np.asarray(expected_ids[i])) and \
            record["prediction"].startswith(prefix)
        assert record["score"] == pytest.approx(float(scores[i]), abs=1e-3)
    with pytest.raises(UserError, match="infer.decoder_prefix has .* Decoder.max_length=6"):
        job.infer(checkpoint, source, tmp_path / "long", **INFER, decoder_prefix="the lazy dog jumps over the fox")
    assert not (tmp_path / "long.partial").exists()


def by_hand(tiny, pairs):
    """Log-likelihood of each (input, target)."""
    model, params, vocabulary = tiny
    x, y = (tokens(vocabulary, texts) for texts in zip(*pairs, strict=True))
    logits = jax.jit(model.apply)(params, {"encoder_input_tokens": x, "decoder_target_tokens": y,
                                           "decoder_input_tokens": np.pad(y, ((0, 0), (1, 0)))[:, :-1]})
    log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), y[..., None], -1)[..., 0]
    return np.where(y > 0, log_probs, 0).sum(-1)


def test_ranked_choices(tiny, checkpoint, tmp_path):
    texts, choices = sentences(12, seed=10), ["fox", "the lazy dog", ""]
    source = write(tmp_path / "in.txt", texts)
    assert job.infer(checkpoint, source, tmp_path / "same", mode="rank", choices=choices, **INFER) == 0
    own = [choices[:1], choices, [*choices[::-1], "some english text", "over"]] * 4
    lines = [json.dumps({"input": t, "choices": c}) for t, c in zip(texts, own, strict=True)]
    lines += ['{"input": "fox"}', '{"input": "fox", "choices": []}', '{"input": "fox", "choices": "yes"}']
    path = write(tmp_path / "in.jsonl", lines)
    assert job.infer(checkpoint, path, tmp_path / "own", mode="rank", **INFER) == 3
    same, differ = read(tmp_path / "same"), read(tmp_path / "own")
    not_a_list = "field 'choices' is not a list of strings"
    assert [r["error"] for r in differ[12:]] == ["no field 'choices'", not_a_list, not_a_list]
    scores = iter(by_hand(tiny, [(t, c) for i, t in enumerate(texts) for c in (*choices, *own[i])]))
    for text, mine, record, other in zip(texts, own, same, differ, strict=False):
        for given, out in ((choices, record), (mine, other)):
            exact = [float(next(scores)) for _ in given]
            best = int(np.argmax(exact))
            assert out.pop("scores") == pytest.approx(exact, abs=1e-3)
            assert out == {"input": text, "prediction": given[best], "score": pytest.approx(exact[best], abs=1e-3),
                           **({"choices": mine} if out is other else {})}


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


def test_several_checkpoints_are_averaged(tiny, checkpoint, tmp_path):
    model, params, vocabulary = tiny
    second = jax.tree.map(lambda leaf: leaf * 2.0, model.init(jax.random.key(2)))
    other = save(tmp_path / "other", model, second, vocabulary)
    texts = sentences(16, seed=12)
    source = write(tmp_path / "in.txt", texts)
    run = jax.jit(lambda p, x: decoding.decode(model, p, x, MAX_LENGTH))
    ids, scores = run((params, second), tokens(vocabulary, texts))
    expected = [{"input": text, "prediction": vocabulary.decode(np.asarray(row)),
                 "score": pytest.approx(float(score), abs=1e-3)}
                for text, row, score in zip(texts, ids, scores, strict=True)]
    for name, given in (("text", f"{checkpoint},{other}"), ("list", [checkpoint, other])):
        job.infer(given, source, tmp_path / name, **INFER)
        assert read(tmp_path / name) == expected
    job.infer(checkpoint, source, tmp_path / "alone", **INFER)
    assert read(tmp_path / "alone") != expected
    # A comma may be in a name.
    comma = save(tmp_path / "a,b", model, params, vocabulary)
    job.infer(comma, source, tmp_path / "comma", **INFER)
    assert read(tmp_path / "comma") == read(tmp_path / "alone")

    wider = Model(dataclasses.replace(model.config, mlp_dim=16))
    wider = save(tmp_path / "wider", wider, wider.init(jax.random.key(0)), vocabulary)
    bytes_ = save(tmp_path / "bytes", model, params, ByteVocabulary(0))
    for given, message in ((f"{checkpoint},{wider}", "another T5Config.mlp_dim .16.* than .*averaged"),
                           (f"{checkpoint},{bytes_}", "another vocabulary than"), (f"{checkpoint},", "empty path"),
                           ([], "empty path")):
        with pytest.raises(UserError, match=message):
            job.infer(given, source, tmp_path / "none", **INFER)
    assert not (tmp_path / "none.partial").exists()


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

    def watch(self, place, record):
        asked.append(record)
        return row(self, place, record)

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

    changed = write(tmp_path / "changed.txt", [*texts[:done - 1], "changed", *texts[done:]])
    with pytest.raises(UserError, match=f"line {done} of .*overwrite"):
        job.infer(checkpoint, changed, out, **INFER)
    with pytest.raises(UserError, match=f"line {done} of .*overwrite"):
        job.infer(checkpoint, write(tmp_path / "short.txt", texts[:done - 1]), out, **INFER)
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


def test_few_programs_compile(checkpoint, tmp_path, monkeypatch):
    shapes = set()
    padded = job._Worker._padded

    def watch(self, rows, max_length):
        array = padded(self, rows, max_length)
        shapes.add(array.shape)
        return array

    monkeypatch.setattr(job._Worker, "_padded", watch)
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
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(job, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    job.infer(checkpoint, write(tmp_path / "in.txt", ["fox"] * 256), tmp_path / "out", **INFER)
    captured = capsys.readouterr()
    assert captured.out == "" and "infer: 128 lines (50%), 64.0 lines/s" in captured.err
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
    root = os.path.dirname(os.path.dirname(__file__))
    gin.parse_config_file(os.path.join(root, "gin", "runs", "infer.gin"))
    gin.parse_config(f"infer.checkpoint = '{checkpoint}'\ninfer.input = '{source}'\ninfer.output = '{out}'\n"
                     f"BATCH_SIZE = 8\nDecoder.max_length = {MAX_LENGTH}\ninfer.max_input_length = 64")
    assert job.infer() == 0
    assert read(out) == expected(tiny, ["the fox"])


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
    command = [sys.executable, "-c", textwrap.dedent(BLOCKED.format(max_length=MAX_LENGTH)), str(checkpoint), source,
               str(out)]
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
