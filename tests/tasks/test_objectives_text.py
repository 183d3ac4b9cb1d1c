"""Objectives on text, before it is tokenized."""

import pytest
import seqio
import tensorflow as tf

from t5x_lite.tasks import preprocessors

TEXT = " ".join(f"w{i}" for i in range(40))


def texts(*values) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices({"text": list(values)})


def made_by(preprocessor, ds, *names, **kwargs) -> list[tuple[str, ...]]:
    """What it makes of a data set, always with the same seeds: the named features."""
    with seqio.map_seed_manager(1):
        return [tuple(e[name].decode() for name in names) for e in preprocessor(ds, **kwargs).as_numpy_iterator()]


def test_lm_has_no_inputs():
    assert made_by(preprocessors.lm, texts("a b"), "inputs", "targets") == [("", "a b")]


def test_characters_of_scripts_without_blanks_stand_alone():
    made = made_by(preprocessors.pad_nonspaced_languages, texts("see 東京  now", "ไทย", "été"), "text")
    assert made == [("see 東 京 now",), (" ไ ท ย ",), ("été",)]


def test_random_split_keeps_the_words_and_draws_a_length_for_each_text():
    split = preprocessors.random_split_text
    made = [
        x for (x,) in made_by(split, texts(*[TEXT] * 60), "text", min_words_per_segment=2, max_words_per_segment=20)
    ]
    assert " ".join(made) == " ".join([TEXT] * 60)
    firsts = {len(x.split()) for x in made if x.startswith("w0 ")}
    assert min(firsts) >= 2 and max(firsts) <= 20 and len(firsts) > 6
    blocks = made_by(split, texts(*[TEXT] * 20), "text", max_words_total=10)
    assert {x.split()[0] for (x,) in blocks} == {"w0", "w10", "w20", "w30"}


def test_blanks_are_filled_by_the_reverse():
    made = made_by(preprocessors.fill_in_the_blank, texts(*[TEXT] * 10, "alone", ""), "inputs", "targets")
    assert len(made) == 20
    for (inputs, targets), (back, forth) in zip(made[::2], made[1::2], strict=True):
        assert (inputs, back) == (f"fill: {forth}", f"fill: {targets}")
        words = [w for w in (targets + " " + forth).split() if w != "X"]
        assert sorted(words) == sorted(TEXT.split()) and abs(targets.count("X") - forth.count("X")) <= 1
        assert "X X" not in targets + forth
    assert len({targets.count("X") for _, targets in made}) > 3


def test_a_blank_tells_its_size():
    sized = preprocessors.fill_in_the_blank_sized
    made = made_by(sized, texts(*[TEXT] * 40), "inputs", "targets", size_bins=(1, 4, 16))
    sizes = set()
    for inputs, targets in made:
        (hole,) = [w for w in inputs.split() if w.startswith("_")]
        assert inputs.replace(hole, targets) == f"fill: {TEXT}"
        size = len(targets.split())
        assert 1 <= size < 16 and min((1, 4, 16), key=lambda b: abs(b - size)) == int(hole.strip("_"))
        sizes.add(size)
    assert len(sizes) > 8


@pytest.mark.parametrize(
    "reuse, expected", [(True, [("A b.", "C!?"), ("C!?", "D"), ("E.", "F.")]), (False, [("A b.", "C!?"), ("E.", "F.")])]
)
def test_neighbors_stand_on_one_line(reuse, expected):
    text = texts("A b. C!? D\n\nE. F.\nG.")
    assert made_by(preprocessors.neighboring_pairs, text, "first", "second", reuse_sentences=reuse) == expected


def test_next_sentences_are_the_next_or_exchanged():
    documents = [f"A{i}. B{i}." for i in range(60)]
    ask = preprocessors.next_sentence_prediction
    made = made_by(ask, texts(*documents), "inputs", "targets")
    assert len(made) == 60 and made == made_by(ask, texts(*documents), "inputs", "targets")
    for inputs, targets in made:
        label, first, second = inputs.split()
        assert label == "nsp:" and (first[1:] == second[1:]) == (targets == "next")
    assert 10 < sum(t == "next" for _, t in made) < 50
    named = made_by(ask, texts("A. B.", "C. D."), "inputs", label_sentences=True, p_neighbors=1.0)
    assert set(named) == {("nsp: sentence1: A. sentence2: B.",), ("nsp: sentence1: C. sentence2: D.",)}
