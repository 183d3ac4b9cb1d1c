"""Answers of the infer job beyond one greedy one: several, begun with given words, ranked, of several checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from infer_runs import INFER, MAX_LENGTH, decode, log_likelihoods, read, save, sentences, tokens, write
from tiny_models import random_params

from t5x_lite import decoding
from t5x_lite.errors import UserError
from t5x_lite.jobs import infer as job
from t5x_lite.models import Model, T5Config
from t5x_lite.vocabularies import ByteVocabulary


@pytest.mark.parametrize(
    "decoder",
    [
        decoding.Decoder(MAX_LENGTH, "beam", num_beams=3, num_return_sequences=2),
        decoding.Decoder(MAX_LENGTH, "sample", num_return_sequences=3),
    ],
    ids=["beam", "sample"],
)
def test_several_answers_best_first(tiny, checkpoint, tmp_path, decoder):
    model, params, vocabulary = tiny
    texts = sentences(20, seed=8)
    out = tmp_path / "out.jsonl"
    job.infer(checkpoint, write(tmp_path / "in.txt", texts), out, **INFER | {"decoder": decoder})
    run = jax.jit(lambda p, x: decoder(model, p, x))
    ids, scores = map(np.asarray, run(params, tokens(vocabulary, texts)))
    records = read(out)
    for i, record in enumerate(records):
        assert record == {
            "input": texts[i],
            "predictions": [
                {"text": vocabulary.decode(row), "score": pytest.approx(float(score), abs=1e-3)}
                for row, score in zip(ids[i], scores[i], strict=True)
            ],
        }
    assert len({p["text"] for r in records for p in r["predictions"]}) > 20


def test_beams_that_were_not_found_are_left_out(tmp_path):
    """A model that ends every answer at once has one to give."""
    model = Model(
        T5Config(
            vocab_size=259, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
        )
    )
    params = random_params(model.config)
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
        assert record["prediction"] == vocabulary.decode(np.asarray(expected_ids[i])) and record[
            "prediction"
        ].startswith(prefix)
        assert record["score"] == pytest.approx(float(scores[i]), abs=1e-3)
    with pytest.raises(UserError, match="infer.decoder_prefix has .* Decoder.max_length=6"):
        job.infer(checkpoint, source, tmp_path / "long", **INFER, decoder_prefix="the lazy dog jumps over the fox")
    assert not (tmp_path / "long.partial").exists()


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
    scores = iter(log_likelihoods(tiny, [(t, c) for i, t in enumerate(texts) for c in (*choices, *own[i])]))
    for text, mine, record, other in zip(texts, own, same, differ, strict=False):
        for given, out in ((choices, record), (mine, other)):
            exact = [float(next(scores)) for _ in given]
            best = int(np.argmax(exact))
            assert out.pop("scores") == pytest.approx(exact, abs=1e-3)
            assert out == {
                "input": text,
                "prediction": given[best],
                "score": pytest.approx(exact[best], abs=1e-3),
                **({"choices": mine} if out is other else {}),
            }


@pytest.mark.slow
def test_several_checkpoints_are_averaged(tiny, checkpoint, tmp_path):
    model, params, vocabulary = tiny
    second = jax.tree.map(lambda leaf: leaf * 2.0, random_params(model.config, seed=2))
    other = save(tmp_path / "other", model, second, vocabulary)
    texts = sentences(16, seed=12)
    source = write(tmp_path / "in.txt", texts)
    ids, scores = decode(model, (params, second), tokens(vocabulary, texts), MAX_LENGTH)
    expected = [
        {
            "input": text,
            "prediction": vocabulary.decode(np.asarray(row)),
            "score": pytest.approx(float(score), abs=1e-3),
        }
        for text, row, score in zip(texts, ids, scores, strict=True)
    ]
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
    wider = save(tmp_path / "wider", wider, random_params(wider.config), vocabulary)
    bytes_ = save(tmp_path / "bytes", model, params, ByteVocabulary(0))
    for given, message in (
        (f"{checkpoint},{wider}", "another T5Config.mlp_dim .16.* than .*averaged"),
        (f"{checkpoint},{bytes_}", "another vocabulary than"),
        (f"{checkpoint},", "empty path"),
        ([], "empty path"),
    ):
        with pytest.raises(UserError, match=message):
            job.infer(given, source, tmp_path / "none", **INFER)
    assert not (tmp_path / "none.partial").exists()
