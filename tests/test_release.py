"""A run's folder as a folder to publish: weights, tokenizer, configuration, and a card that says what the run says."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from hugging_face_folders import sentencepiece_model
from safetensors.numpy import load_file
from tiny_models import random_params

import t5x_lite
from t5x_lite import checkpoints, cli, configuration, monitor, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, hugging_face_folder
from t5x_lite.jobs.release import release
from t5x_lite.models import T5Config
from t5x_lite.models.finetuning_config import LoRA
from t5x_lite.report import model_card, runs
from t5x_lite.trainer import TrainState

CONFIG = T5Config(
    vocab_size=96,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_activations=("gelu", "linear"),
    logits_via_embedding=False,
)
BINDINGS = {"train.optimizer": "@adafactor()", "train.initial_checkpoint_path": "'/runs/pretrained'"}
MEANING = {
    "SeqioSource.mixture_or_task_name": "'a_task'",
    "SeqioSource.split": "'train'",
    "SeqioSource.packing": "True",
    "BATCH_SIZE": "8",
    "RANDOM_SEED": "3",
}


def vocabulary():
    return vocabularies.SentencePieceVocabulary(sentencepiece_model(), 20)


def make_run(folder, config=CONFIG, steps=(10, 20)):
    """What `train` leaves, of parameters drawn at random."""
    with checkpoints.Checkpointer(folder) as checkpointer:
        for step in steps:
            state = TrainState(jnp.int32(step), random_params(config, step), {"count": jnp.int32(step)})
            meta = {
                "model": config.to_dict(),
                "vocabulary": vocabulary().to_dict(),
                "feature_lengths": {"inputs": 32, "targets": 16},
                "bindings": BINDINGS,
                "meaning": MEANING,
            }
            checkpointer.save(state, {"positions": np.zeros((4, 2), np.int64)}, meta)
    with monitor.MetricsWriter(folder) as writer:
        for step, tokens, accuracy in ((5, 300.0, 1.0), (10, 500.0, 50.0), (20, 700.0, 75.5)):
            writer.write(step, {"train/tokens_per_second": tokens * 2, "train/steps_per_second": 2.0})
            writer.write(step, {"eval/a/task/accuracy": accuracy, "eval/a/task/bleu": math.nan})
        writer.write(20, {"eval/other/loss": 0.25})
    journal = monitor.Journal(folder)
    journal.add("started: step 0 of 20, 8 device(s) (cpu), mesh data 8 × fsdp 1 × tensor 1")
    journal.add("done: step 20, seconds 1")
    (folder / "config.gin").write_text("# Recorded by t5x-lite: ...\nBATCH_SIZE = 8\n")
    sample = {"step": 20, "task": "a|task", "inputs": "long " * 200, "targets": "right", "prediction": "wrong\nlines"}
    (folder / "samples.jsonl").write_text((json.dumps(sample) + "\n") * 5)
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def released(run_dir):
    target = run_dir.parent / "released" / "my-t5"
    flags = [f"--model_dir={run_dir}", f"--to={target}", "--license=cc-by-4.0"]
    assert cli.main(["release", *flags]) == 0
    configuration.clear()
    return target


def card_of(folder):
    """(front matter, the rest)."""
    _, front, rest = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), rest


def cells(text, first):
    """Of the first table row that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))][1:]


def test_the_folder_is_whole_and_alone(released, run_dir):
    names = {path.name for path in released.iterdir()}
    assert names == {
        "README.md",
        "config.gin",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "spiece.model",
        "tokenizer_config.json",
    }
    assert [path.name for path in released.parent.iterdir()] == ["my-t5"]
    assert (released / "config.gin").read_text() == (run_dir / "config.gin").read_text()


def test_the_weights_are_those_of_the_newest_checkpoint(released):
    kind, weights = formats.read(released)
    assert kind == formats.HUGGING_FACE and vocabularies.from_dict(weights.vocabulary) == vocabulary()
    assert weights.config == dataclasses.replace(CONFIG, dropout_rate=weights.config.dropout_rate)
    expected = checkpoints.leaves_by_path(random_params(CONFIG, 20))
    tensors = load_file(released / "model.safetensors")
    np.testing.assert_array_equal(tensors["shared.weight"], expected["token_embedder/embedding"])
    q = expected["encoder/layers/attention/query/kernel"][1]
    np.testing.assert_array_equal(tensors["encoder.block.1.layer.0.SelfAttention.q.weight"], np.asarray(q).T)
    assert json.loads((released / "config.json").read_text())["d_ff"] == 24


def test_the_front_matter(released):
    front, _ = card_of(released)
    assert front["license"] == "cc-by-4.0" and front["library_name"] == "transformers"
    (model,) = front["model-index"]
    assert model["name"] == "my-t5"
    assert model["results"] == [
        {
            "task": {"type": "text2text-generation"},
            "dataset": {"name": "a/task", "type": "a/task", "split": "validation"},
            "metrics": [{"type": "accuracy", "value": 75.5}],
        },
        {
            "task": {"type": "text2text-generation"},
            "dataset": {"name": "other", "type": "other", "split": "validation"},
            "metrics": [{"type": "loss", "value": 0.25}],
        },
    ]


def test_what_the_card_says_of_the_run(released):
    _, text = card_of(released)
    count = sum(leaf.size for leaf in checkpoints.leaves_by_path(random_params(CONFIG, 20)).values())
    assert f"# my-t5\n\nA T5 (encoder-decoder, text to text) of {count:,} parameters" in text
    assert cells(text, "data") == ["a_task"] and cells(text, "steps") == ["20"]
    assert cells(text, "tokens of a row") == ["inputs 32, targets 16"]
    assert cells(text, "rows of a batch") == ["8"] and cells(text, "seed") == ["3"]
    assert cells(text, "started from") == ["/runs/pretrained"] and cells(text, "optimizer") == ["@adafactor()"]
    assert cells(text, "hardware") == ["8 device(s) (cpu), mesh data 8 × fsdp 1 × tensor 1"]
    assert cells(text, "published by") == [f"T5X-lite {t5x_lite.__version__}"]
    # 5 steps of 300, 5 of 500 and 10 of 700 tokens.
    assert cells(text, "tokens seen") == ["about 11k, padding left out"]
    assert cells(text, "a/task") == ["accuracy", "75.5", "20"]
    shown = cells(text, "a\\|task")
    assert len(shown[0]) == 300 and shown[0].endswith("…") and shown[1:] == ["right", "wrong lines"]
    assert text.count("a\\|task") == model_card.SAMPLES


def test_an_earlier_checkpoint_in_another_dtype(run_dir, tmp_path):
    assert release(str(run_dir), str(tmp_path / "early"), "other", name="early one", step=10, dtype="bfloat16") == 0
    _, weights = formats.read(tmp_path / "early")
    assert {str(tensor.dtype) for tensor in weights.params.values()} == {"bfloat16"}
    expected = checkpoints.leaves_by_path(random_params(CONFIG, 10))["token_embedder/embedding"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(weights.params["token_embedder/embedding"].read(), np.asarray(expected))
    front, text = card_of(tmp_path / "early")
    assert front["model-index"][0]["name"] == "early one" and cells(text, "a/task") == ["accuracy", "50", "10"]
    assert cells(text, "tokens seen") == ["about 4k, padding left out"] and len(front["model-index"][0]["results"]) == 1


def test_a_run_that_tells_little(tmp_path, capsys):
    folder = tmp_path / "bare"
    with checkpoints.Checkpointer(folder) as checkpointer:
        state = TrainState(jnp.int32(1), random_params(CONFIG), {"count": jnp.int32(1)})
        checkpointer.save(state, {"positions": np.zeros((1, 2), np.int64)}, {"model": CONFIG.to_dict()})
    assert release(str(folder), str(tmp_path / "out"), "mit") == 0
    said = capsys.readouterr().err
    assert "no vocabulary, so the folder has no tokenizer" in said and "no config.gin, so the folder has none" in said
    front, text = card_of(tmp_path / "out")
    assert "model-index" not in front and "has no evaluation" in text and "transformers import" not in text
    assert "config.gin" not in text and model_card.tokens_seen(runs.read([str(folder)])[0], 1) is None


def test_a_dry_run_prints_the_card_alone(run_dir, released, tmp_path, capsys):
    assert release(str(run_dir), str(tmp_path / "my-t5"), "cc-by-4.0", dry_run=True) == 0
    assert capsys.readouterr().out == (released / "README.md").read_text() and not list(tmp_path.iterdir())


def test_nothing_half_written_stays(run_dir, tmp_path, monkeypatch):
    write = hugging_face_folder.write

    def full(folder, *arguments):
        write(folder, *arguments)
        raise OSError("no space left on device")

    monkeypatch.setattr(hugging_face_folder, "write", full)
    with pytest.raises(OSError, match="no space left"):
        release(str(run_dir), str(tmp_path / "out"), "mit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(license="all rights: mine"), "--license=all rights: mine: give a license's short name"),
        (dict(dtype="int8"), "release.dtype must be one of"),
        (dict(step=11), "no checkpoint of step 11 under .*; there are 10, 20"),
        (dict(model_dir="/absent"), "/absent is no folder: give the MODEL_DIR of a run"),
        (dict(target="gs://bucket/out"), "release.target = gs://bucket/out: name a local folder"),
        (dict(target="{run}"), "exists: name a new folder"),
    ],
)
def test_what_is_wrong(run_dir, tmp_path, changes, message):
    arguments = {"model_dir": str(run_dir), "target": str(tmp_path / "out"), "license": "mit", **changes}
    arguments["target"] = arguments["target"].format(run=run_dir)
    with pytest.raises(UserError, match=message):
        release(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "config, message",
    [
        (dataclasses.replace(CONFIG, lora=LoRA(rank=2)), "no place for what finetuning added to the model: lora"),
        (dataclasses.replace(CONFIG, architecture="causal_lm", num_encoder_layers=0), "an encoder and a decoder apart"),
        (dataclasses.replace(CONFIG, shared_stacks=True), "an encoder and a decoder apart"),
    ],
)
def test_models_that_transformers_does_not_have(config, message, tmp_path):
    make_run(tmp_path / "run", config, steps=[1])
    with pytest.raises(UserError, match=message):
        release(str(tmp_path / "run"), str(tmp_path / "out"), "mit")
    assert not (tmp_path / "out").exists()


def test_transformers_loads_it(released):
    """Where torch and transformers are installed: without a missing tensor, and with the vocabulary's ids."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(released, output_loading_info=True)
    assert not any(info.values()), info
    embedding = np.asarray(checkpoints.leaves_by_path(random_params(CONFIG, 20))["token_embedder/embedding"])
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), embedding)
    tokenizer = transformers.AutoTokenizer.from_pretrained(released)
    text = "the quick fox <extra_id_0> numbers"
    assert tokenizer(text).input_ids == [*vocabulary().encode(text), vocabulary().eos_id]
