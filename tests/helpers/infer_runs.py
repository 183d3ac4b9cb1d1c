"""What the tests of the infer job share: texts, a tiny vocabulary, saved models, and the answers to expect."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from tiny_models import random_params

from t5x_lite import checkpoints, decoding
from t5x_lite.models import Model, T5Config
from t5x_lite.trainer import TrainState
from t5x_lite.vocabularies import SentencePieceVocabulary

WORDS = "the quick brown fox jumps over a lazy dog while some english text is translated into other words".split()
MAX_LENGTH = 6
ROWS = 32
INFER = {"decoder": decoding.Decoder(max_length=MAX_LENGTH), "batch_size": 8, "max_input_length": 64}


def sentences(n, seed=0):
    """Texts of 1 to 20 words: two lengths of batches."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 21))) for _ in range(n)]


def train_vocabulary(extra_ids=5) -> SentencePieceVocabulary:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences(200)),
        model_writer=out,
        vocab_size=80,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return SentencePieceVocabulary(out.getvalue(), extra_ids)


def tiny_model():
    """(model, parameters, vocabulary)."""
    vocabulary = train_vocabulary()
    model = Model(
        T5Config(
            vocab_size=vocabulary.vocab_size + 3,
            emb_dim=16,
            num_heads=2,
            head_dim=8,
            mlp_dim=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
    )
    # Of these every answer is another, and no beam search comes back with fewer than it was asked for.
    params = jax.tree.map(lambda leaf: leaf * 2.0, random_params(model.config, seed=6))
    return model, params, vocabulary


def save(model_dir, model, params, vocabulary):
    """As the trainer saves; returns MODEL_DIR."""
    checkpointer = checkpoints.Checkpointer(model_dir, asynchronous=False)
    state = TrainState(jnp.int32(3), params, {"count": jnp.zeros(1)})
    meta = {"model": model.config.to_dict(), "vocabulary": vocabulary.to_dict() if vocabulary else None}
    checkpointer.save(state, {"position": np.zeros(1, np.int64)}, meta)
    checkpointer.close()
    return str(model_dir)


@pytest.fixture(scope="session")
def tiny():
    return tiny_model()


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory):
    model, params, vocabulary = tiny
    return save(tmp_path_factory.mktemp("model"), model, params, vocabulary)


def write(path, lines, end="\n"):
    path.write_bytes("".join(line + end for line in lines).encode("utf-8"))
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_bytes().decode("utf-8").split("\n")[:-1]]


def tokens(vocabulary, texts, length=64):
    """int32 [n, length], EOS included."""
    out = np.zeros((len(texts), length), np.int32)
    for i, text in enumerate(texts):
        ids = [*vocabulary.encode(text)[: length - 1], 1]
        out[i, : len(ids)] = ids
    return out


decode = jax.jit(decoding.decode, static_argnames=("model", "max_length"))


def expected(tiny, texts, max_input_length=64):
    """The records by the plainest route: batches of one shape."""
    model, params, vocabulary = tiny
    inputs = np.pad(tokens(vocabulary, texts, max_input_length), ((0, -len(texts) % ROWS), (0, 64 - max_input_length)))
    answers = [decode(model, params, inputs[i : i + ROWS], MAX_LENGTH) for i in range(0, len(inputs), ROWS)]
    ids, scores = (np.concatenate(x) for x in zip(*answers, strict=True))
    return [
        {"input": text, "prediction": vocabulary.decode(row), "score": pytest.approx(float(s), abs=1e-3)}
        for text, row, s in zip(texts, ids, scores, strict=False)
    ]


apply = jax.jit(Model.apply, static_argnums=0)


def log_likelihoods(tiny, pairs):
    """Of each (input, target), from the full model's logits."""
    model, params, vocabulary = tiny
    x, y = (np.pad(tokens(vocabulary, texts), ((0, -len(pairs) % ROWS), (0, 0))) for texts in zip(*pairs, strict=True))
    found = []
    for i in range(0, len(x), ROWS):
        targets = y[i : i + ROWS]
        logits = apply(
            model,
            params,
            {
                "encoder_input_tokens": x[i : i + ROWS],
                "decoder_target_tokens": targets,
                "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            },
        )
        log_probs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)[..., 0]
        found.extend(np.where(targets > 0, log_probs, 0).sum(-1))
    return found[: len(pairs)]
