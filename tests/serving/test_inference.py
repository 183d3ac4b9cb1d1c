"""One compiled program for many settings, against decoders that are compiled with theirs; and few shapes."""

import jax
import numpy as np
import pytest
from infer_runs import sentences, tokens

from t5x_lite import inference
from t5x_lite.decoding import Decoder


@pytest.mark.parametrize(
    ("decoders", "together"),
    [
        ([Decoder(6), Decoder(11, temperature=2.0), Decoder(1)], True),
        ([Decoder(6, "sample", 0.5, 0, 0.8, seed=3), Decoder(9, "sample", 1.5, 0, 0.6, seed=-7)], True),
        pytest.param(
            [Decoder(9, "sample", 0.7, num_return_sequences=2), Decoder(5, "sample", num_return_sequences=2, seed=1)],
            True,
            marks=pytest.mark.slow,
        ),
        *(
            pytest.param(
                [Decoder(n, "beam", num_beams=3, length_penalty=a, beam_rule=rule) for n, a in ((6, 0.0), (11, 2.0))],
                False,
                marks=pytest.mark.slow,
            )
            for rule in ("t5x", "huggingface")
        ),
    ],
    ids=["greedy", "sample", "samples", "t5x_beams", "huggingface_beams"],
)
def test_settings_are_told_to_one_program(small, decoders, together):
    answerer, texts = small.answerer, [" ".join(text.split()[:4]) for text in sentences(6, seed=2)]
    inference._predict.clear_cache()
    rows = [answerer.read(text, row_id=i + 5, decoder=decoders[i % len(decoders)]) for i, text in enumerate(texts)]
    assert len({row.kind for row in rows}) == (1 if together else len(decoders))
    groups = [rows] if together else [rows[k :: len(decoders)] for k in range(len(decoders))]
    found = {row.row_id: answer for group in groups for row, answer in zip(group, answerer.predict(group), strict=True)}
    assert inference._predict._cache_size() == 1
    for k, decoder in enumerate(decoders):
        mine = rows[k :: len(decoders)]
        inputs = tokens(small.vocabulary, texts[k :: len(decoders)])
        row_ids = np.array([row.row_id for row in mine], np.int32)
        run = jax.jit(lambda p, x, r, decoder=decoder: decoder(answerer.model, p, x, 1, r))
        ids, scores = run(small.params, inputs, row_ids)
        ids, scores = np.asarray(ids), np.asarray(scores)
        for i, row in enumerate(mine):
            expected = [small.vocabulary.decode(x) for x in np.atleast_2d(ids[i])]
            assert list(found[row.row_id].texts) == expected
            assert found[row.row_id].scores == pytest.approx(np.atleast_1d(scores[i]).tolist(), abs=1e-3)


def test_capacities_are_few_and_hold_what_is_asked():
    lengths = range(1, 513)
    capacities = {Decoder(n).program().max_length for n in lengths}
    assert len(capacities) == 3 + 7
    assert all(n <= Decoder(n).program().max_length < max(17, 2 * n, n + 64) for n in lengths)


@pytest.mark.parametrize("adapts", [True, False])
def test_few_rows_go_in_small_batches(small, monkeypatch, adapts):
    a, shapes = small.answerer, []
    answerer = inference.Answerer(a.model, a.params, a.vocabulary, a.partitioner, 32, 64, 64, adapts)

    def scores(params, inputs, targets, **static):
        shapes.append((len(inputs), len(targets)))
        return jax.numpy.zeros(len(inputs))

    monkeypatch.setattr(inference, "_score", scores)
    for n in (1, 2, 3, 8, 9, 32, 33):
        assert len(answerer.score([answerer.read("fox", ["dog"])] * n)) == n
    expected = [2, 2, 8, 8, 32, 32, 32, 2] if adapts else [32] * 8
    assert shapes == [(n, n) for n in expected]
