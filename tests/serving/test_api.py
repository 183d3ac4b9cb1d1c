"""`t5x_lite.Model` against the infer job, and what it makes of training pairs, folders and mistakes."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from hugging_face_folders import make
from infer_runs import INFER, MAX_LENGTH, read, save, sentences, write
from processes import one_device
from small_models import on_one_device
from tiny_models import differing

import t5x_lite
from t5x_lite import decoding, optimizers
from t5x_lite.api import Model, Score, TextCut
from t5x_lite.errors import UserError
from t5x_lite.finetuning import Trainable
from t5x_lite.jobs import infer as job
from t5x_lite.vocabularies import ByteVocabulary

PAIRS = [(f"the {word} fox", answer) for word, answer in zip(("quick", "brown", "lazy"), ("text", "dog", "english"))]
FINETUNE = {"steps": 12, "batch_size": 4, "optimizer": optimizers.adamw(optimizers.constant_rate(0.03))}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "sample", "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 2, "seed": 5},
        pytest.param({"method": "beam", "num_beams": 3, "num_return_sequences": 2}, marks=pytest.mark.slow),
    ],
    ids=["greedy", "sample", "beam"],
)
def test_it_answers_as_the_infer_job(small, checkpoint, tmp_path, settings):
    texts = sentences(20, seed=8)
    decoder = decoding.Decoder(max_length=MAX_LENGTH, **settings)
    out = tmp_path / "out"
    job.infer(checkpoint, write(tmp_path / "in.txt", texts), out, **INFER | {"decoder": decoder}, decoder_prefix="the")
    found = small.generate(texts, max_length=MAX_LENGTH, decoder_prefix="the", **settings)
    if "num_return_sequences" in settings:
        assert found == [[p["text"] for p in r["predictions"]] for r in read(out)]
    else:
        assert found == [r["prediction"] for r in read(out)]
    assert len({str(answer) for answer in found}) > 10


def test_it_scores_as_the_infer_job(small, checkpoint, tmp_path):
    pairs = list(zip(sentences(20, seed=3), sentences(20, seed=4)))
    source = write(tmp_path / "in.tsv", [f"{i}\t{t}" for i, t in pairs])
    job.infer(checkpoint, source, tmp_path / "out", mode="score", **INFER)
    for score, record, (_, target) in zip(small.score(pairs), read(tmp_path / "out"), pairs, strict=True):
        tokens = len(small.vocabulary.encode(target)) + 1
        assert score == Score(pytest.approx(record["score"], abs=1e-3), tokens)
    assert small.score([]) == [] and small.generate([]) == []


def test_finetuning_learns_the_pairs_and_is_a_function_of_the_seed(small):
    before, told = jax.tree.map(jnp.copy, small.params), []
    one = small.finetune(PAIRS, **FINETUNE, on_step=lambda step, metrics: told.append((step, metrics["loss"])))
    assert not differing(small.params, before)
    assert told == list(enumerate(one.losses, start=1)) and len(told) == 12 and one.step == small.step + 12
    gained = [a.log_likelihood - b.log_likelihood for a, b in zip(one.score(PAIRS), small.score(PAIRS), strict=True)]
    assert min(gained) > 5 and one.losses[-1] < one.losses[0] / 2
    assert one.config.dropout_rate == 0.0
    again = small.finetune(PAIRS, **FINETUNE)
    assert again.losses == one.losses and not differing(again.params, one.params)


@pytest.mark.slow
def test_another_seed_makes_another_model(small):
    one, other = (small.finetune(PAIRS, steps=3, batch_size=2, seed=seed) for seed in (0, 1))
    assert one.losses != other.losses
    # The order, too: without dropout the seed has no other say.
    one, other = (small.finetune(PAIRS, steps=1, batch_size=2, seed=seed, dropout_rate=0.0) for seed in (0, 1))
    assert one.losses != other.losses


@pytest.mark.slow
def test_only_what_is_trainable_changes(small):
    trainable = Trainable(("decoder/logits_dense/kernel",))
    tuned = small.finetune(PAIRS, steps=2, batch_size=4, trainable=trainable)
    assert differing(tuned.params, small.params) == ["decoder/logits_dense/kernel"]


def test_a_loss_that_is_not_finite_stops_finetuning(tiny):
    model, params, vocabulary = tiny
    broken = on_one_device(tiny=(model, jax.tree.map(lambda x: x * float("nan"), params), vocabulary))
    with pytest.raises(UserError, match="not finite in 10 steps in a row, up to step 10: lower learning_rate"):
        broken.finetune(PAIRS, **FINETUNE)
    with pytest.raises(UserError, match="the score is nan"):
        broken.score(PAIRS)


def test_what_is_saved_is_what_is_loaded(small, tmp_path):
    small.save(tmp_path / "run")
    loaded = Model.load(tmp_path / "run")
    assert (loaded.step, loaded.config, loaded.vocabulary) == (3, small.config, small.vocabulary)
    assert not differing(loaded.params, small.params)
    texts = sentences(5)
    assert loaded.generate(texts, max_length=MAX_LENGTH) == small.generate(texts, max_length=MAX_LENGTH)
    job.infer(str(tmp_path / "run"), write(tmp_path / "in.txt", texts), tmp_path / "out", **INFER)
    assert [r["prediction"] for r in read(tmp_path / "out")] == small.generate(texts, max_length=MAX_LENGTH)
    with pytest.raises(UserError, match="run exists: name a new folder"):
        small.save(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .*: mend that, or name another folder"):
        small.save(tmp_path / "file" / "run")
    # A flipped bit is found out.
    damaged = max((tmp_path / "run" / "checkpoints").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Model.load(tmp_path / "run")


def test_a_hugging_face_folder(tmp_path):
    theirs = make(tmp_path / "theirs", "t5_1_1")
    source = write(tmp_path / "in.txt", ["the quick fox", "numbers"])
    job.infer(str(theirs), source, tmp_path / "out", **INFER)
    model = Model.load(theirs, max_input_length=64)
    found = model.generate(["the quick fox", "numbers"], max_length=MAX_LENGTH)
    assert found == [r["prediction"] for r in read(tmp_path / "out")]
    vocabulary = model.vocabulary
    (theirs / "spiece.model").unlink()
    with pytest.raises(UserError, match="no vocabulary .a Hugging Face folder has spiece.model.*vocabulary="):
        Model.load(theirs)
    assert Model.load(theirs, vocabulary=vocabulary).vocabulary == vocabulary


def test_long_texts_are_cut_with_a_warning_or_refused(small, tiny):
    short, strict = on_one_device(max_length=8, tiny=tiny), on_one_device(max_length=8, cut=False, tiny=tiny)
    long = "the quick brown fox jumps over a lazy dog"
    with pytest.warns(TextCut, match=r"texts\[1\] was cut: .* max_input_length=8 of Model.load") as caught:
        found = short.generate(["fox", long], max_length=MAX_LENGTH)
    assert caught[0].filename == __file__
    ids = small.vocabulary.encode(long)[:7]
    assert found[1] == small.generate([small.vocabulary.decode(ids)], max_length=MAX_LENGTH)[0]
    with pytest.warns(TextCut, match=r"pairs\[0\] was cut: .*max_target_length=8"):
        short.score([("fox", long)])
    with pytest.raises(UserError, match=r"texts\[0\] has more tokens than max_input_length=8"):
        strict.generate([long])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strict.generate(["fox"], max_length=MAX_LENGTH)


def test_mistakes_are_one_line_with_the_remedy(small, tiny, tmp_path):
    model, params, _ = tiny
    cases = [
        (lambda: small.generate("fox"), r"texts must be a list, not str: write \[text\]"),
        (lambda: small.generate(["fox", 3]), r"texts\[1\] must be text, not 3"),
        (lambda: small.generate(["\ud800"]), r"texts\[0\] has a lone surrogate"),
        (lambda: small.generate(["fox"], method="guess"), "Decoder.method must be"),
        (lambda: small.generate(["fox"], max_length=2, decoder_prefix="the fox"), "decoder_prefix has .* max_length=2"),
        (lambda: small.score([("a", "b"), "ab"]), r"pairs\[1\] must be \(input, target\)"),
        (lambda: small.score([("a", None)]), r"pairs\[0\] must be text, not None"),
        (lambda: small.finetune([], steps=1), "pairs is empty"),
        (lambda: small.finetune(PAIRS, steps=0), "steps must be a whole number of at least 1, not 0"),
        (lambda: small.finetune(PAIRS, steps=1, learning_rate=-1), "learning_rate must be a number above 0"),
        (lambda: small.finetune(PAIRS, steps=1, dropout_rate=1.0), "dropout_rate must be in"),
        (lambda: Model.load(tmp_path / "none"), "no checkpoint under"),
        (lambda: Model.load(save(tmp_path / "bare", model, params, None)), "bare carries no vocabulary: give one"),
        (lambda: Model.load(tmp_path / "bare", vocabulary=ByteVocabulary()), "the vocabulary has 384 ids"),
        (lambda: Model.load(tmp_path / "bare", batch_size=3), "batch_size=3 cannot be divided over 8 devices"),
        (lambda: Model.load(tmp_path / "bare", max_input_length=1), "max_input_length must be"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_package_is_imported_at_once_and_without_tensorflow(checkpoint):
    code = f"""
import sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "tensorflow_text", "t5x_lite.tasks"):
    sys.modules[name] = None
import t5x_lite
assert "jax" not in sys.modules and "Model" in dir(t5x_lite)
model = t5x_lite.Model.load({checkpoint!r})
print(model.generate(["the fox"], max_length=2), model.score([("the fox", "dog")]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=one_device())
    assert done.returncode == 0 and "log_likelihood" in done.stdout, done.stderr[-2000:]
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        t5x_lite.Modle  # noqa: B018
