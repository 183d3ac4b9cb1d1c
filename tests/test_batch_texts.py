"""Texts of batches: those that a step is trained on, whole, with weights and the place that they come from."""

import jax
import numpy as np
import pytest

from t5x_lite import batch_texts, data
from t5x_lite.errors import UserError
from t5x_lite.partitioning import MeshConfig
from t5x_lite.vocabularies import ByteVocabulary

BYTES = ByteVocabulary()
EOS, SENTINEL = [BYTES.eos_id], BYTES.vocab_size - 1


def padded(ids, length):
    return np.pad(np.array(ids, np.int32), (0, length - len(ids)))


class Pairs:
    """Blocks of three rows of two segments each, from records that are numbered."""

    vocabulary = BYTES

    def block(self, stream, k):
        for j in range(3):
            texts = [(f"ask: question {stream} {k} {j} {n}", f"it is {n}") for n in "ab"]
            parts = [[BYTES.encode(text) + EOS for text in pair] for pair in texts]
            sizes = [(len(i), len(t)) for i, t in parts]
            segments = [np.repeat([1, 2], [size[side] for size in sizes]) for side in range(2)]
            yield {
                "encoder_input_tokens": padded(parts[0][0] + parts[1][0], 64),
                "encoder_segment_ids": padded(segments[0], 64),
                "decoder_target_tokens": padded(parts[0][1] + parts[1][1], 32),
                "decoder_segment_ids": padded(segments[1], 32),
                "decoder_loss_weights": padded([0] + [1] * (len(segments[1]) - 1), 32),
            }

    def origins(self, stream, k):
        for j in range(3):
            for n in "ab":
                inputs = f"question {stream} {k} {j} {n}"
                yield f"file:{j}{n}", {"inputs": inputs.encode(), "targets": f"it is {n}".encode()}


def show(*args, **kwargs):
    return list(batch_texts.show(Pairs(), 2, 4, "/nowhere", *args, **kwargs))


def test_each_segment_with_its_weight_and_its_place():
    texts = show()
    assert len(texts) == 4
    assert texts[1].splitlines() == [
        "step 1, row 1: stream 0, row 1 of its block 0",
        "  segment 1: tokens, 22 of inputs and 8 of targets; weight 7",
        "    inputs   'ask: question 0 0 1 a</s>'",
        "    targets  'it is a</s>'",
        "    from     file:1a",
        "  segment 2: tokens, 22 of inputs and 8 of targets; weight 8",
        "    inputs   'ask: question 0 0 1 b</s>'",
        "    targets  'it is b</s>'",
        "    from     file:1b",
    ]


def test_the_batch_of_any_step_is_the_one_that_is_trained_on():
    sharding = MeshConfig().build(jax.devices()[:1]).batch
    with data.Batches(Pairs(), 2, 4, sharding) as batches:
        taken = [np.asarray(next(batches)[0]["encoder_input_tokens"]) for _ in range(8)]
    for step in (1, 2, 5, 8):
        shown = show(1, step)
        for row, tokens in zip(shown, taken[step - 1], strict=True):
            question = BYTES.decode([t for t in tokens if t != BYTES.eos_id])
            first, second = question[:21], question[21:42]
            assert f"'{first}</s>'" in row and f"'{second}</s>'" in row and row.startswith(f"step {step},")
    assert show(2, 4) == show(1, 4) + show(1, 5)


def test_blanks_sentinels_and_unpacked_rows_can_be_seen():
    class Unpacked:
        vocabulary = BYTES

        def block(self, stream, k):
            ids = [*BYTES.encode("a\tb "), SENTINEL, *BYTES.encode(" c\n"), SENTINEL - 1, *EOS]
            yield {"decoder_target_tokens": padded(ids, 20), "decoder_loss_weights": padded([1] * len(ids), 20)}

    (text,) = batch_texts.show(Unpacked(), 1, 1, "/nowhere")
    assert text.splitlines()[1:] == [
        "  segment 1: tokens, 10 of targets; weight 10",
        r"    targets  'a\tb <extra_id_0> c\n<extra_id_1></s>'",
    ]


def test_a_text_is_found_by_its_pieces():
    origins = [("a:1", "one two three four"), ("a:2", "one two five six"), ("a:3", "seven")]
    find = batch_texts._find
    assert find(["one two <extra_id_0> six</s>", "<extra_id_0> five</s>"], origins) == ["a:2"]
    assert find(["prefix: " + "x" * 50 + " seven</s>"], [("a:4", "x" * 50 + " seven")]) == ["a:4"]
    assert find(["three four<extra_id_0>seven</s>"], origins) == ["a:1", "a:3"], "documents that were joined"
    assert find(["eight</s>"], origins) == []


def test_data_without_a_vocabulary():
    class Numbers:
        vocabulary = None

    with pytest.raises(UserError, match="no vocabulary"):
        list(batch_texts.show(Numbers(), 1, 1, "/nowhere"))
