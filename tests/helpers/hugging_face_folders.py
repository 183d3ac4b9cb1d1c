"""Hugging Face folders of the tiny models in tests/fixtures, with a small tokenizer."""

import functools
import io
import json
import pathlib

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
EXTRA_IDS = 20


@functools.cache
def stored(family):
    """config (parsed), weights by name, other arrays by name."""
    with np.load(FIXTURES / f"hugging_face_{family}.npz") as arrays:
        config = json.loads(arrays["config"].item())
        weights = {key.removeprefix("weights/"): arrays[key] for key in arrays if key.startswith("weights/")}
        golden = {key.removeprefix("padded/"): arrays[key] for key in arrays if not key.startswith("weights/")}
    return config, weights, golden


@functools.cache
def sentencepiece_model():
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "numbers 1 2 3 4 5"] * 10),
        model_writer=out,
        minloglevel=2,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    return out.getvalue()


def make(folder, family, tensors=None, tokenizer="T5Tokenizer", **changes):
    config, weights, _ = stored(family)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    save_file(weights if tensors is None else tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer, "extra_ids": EXTRA_IDS}))
    if tokenizer == "T5Tokenizer":
        (folder / "spiece.model").write_bytes(sentencepiece_model())
    return folder
