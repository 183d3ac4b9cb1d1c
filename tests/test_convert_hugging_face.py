"""Hugging Face folders in and out, through the command line; logits against the stored ones, tensors bit by bit."""

import dataclasses
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_folders import EXTRA_IDS, make, sentencepiece_model, stored
from safetensors.numpy import load_file

from t5x_lite import checkpoints, cli, configuration, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, hugging_face_folder
from t5x_lite.jobs.convert import convert
from t5x_lite.models import Model

FAMILIES = ("t5_1_0", "t5_1_1")


def logits(config, params, golden):
    apply = jax.jit(Model(config).apply)
    names = ("encoder_input_tokens", "decoder_input_tokens")
    return np.asarray(apply(params, {name: jnp.asarray(golden[name]) for name in names}))


def assert_logits(actual, golden):
    real = golden.get("decoder_target_tokens", np.ones(actual.shape[:2])) > 0
    worst = np.abs(actual - golden["logits"])[real].max()
    assert worst <= 1e-5 * max(1.0, np.abs(golden["logits"]).max())


def assert_same_tensors(folder, expected):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, tmp_path):
    """The command line: a folder becomes a MODEL_DIR with its logits, and that the same folder again."""
    theirs = make(tmp_path / "theirs", family)
    assert cli.main(["convert", f"--from={theirs}", f"--to={tmp_path}/ours"]) == 0
    model, params, meta = checkpoints.load_for_inference(tmp_path / "ours")
    golden = stored(family)[2]
    assert_logits(logits(model.config, params, golden), golden)
    assert model.config.scan_layers and model.config.dropout_rate == 0.1
    vocabulary = vocabularies.from_dict(meta["vocabulary"])
    assert vocabulary == vocabularies.SentencePieceVocabulary(sentencepiece_model(), EXTRA_IDS)
    configuration.clear()

    flags = [f"--from={tmp_path}/ours", f"--to={tmp_path}/back", "--format=hugging_face"]
    assert cli.main(["convert", *flags, "--gin.convert.max_shard_bytes=50000"]) == 0
    back = tmp_path / "back"
    assert_same_tensors(back, stored(family)[1])
    index = json.loads((back / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file.name: load_file(file) for file in back.glob("model-*.safetensors")}
    assert len(files) > 2 and {name: file for file, found in files.items() for name in found} == index
    largest = max(array.nbytes for array in stored(family)[1].values())
    assert all(sum(a.nbytes for a in found.values()) <= max(50_000, largest) for found in files.values())
    assert (back / "spiece.model").read_bytes() == sentencepiece_model()
    written, original = json.loads((back / "config.json").read_text()), stored(family)[0]
    assert {name: written[name] for name in original} == original
    # The shards are read again, too.
    _, weights = formats.read(back)
    assert weights.config == dataclasses.replace(model.config, scan_layers=True)
    shared = stored(family)[1]["shared.weight"]
    np.testing.assert_array_equal(weights.params["token_embedder/embedding"].read(), shared)


def test_bfloat16_and_casting(tmp_path):
    half = {name: array.astype(jnp.bfloat16) for name, array in stored("t5_1_1")[1].items()}
    theirs = make(tmp_path / "theirs", "t5_1_1", half)
    convert(str(theirs), str(tmp_path / "ours"))
    model, params, _ = checkpoints.load_for_inference(tmp_path / "ours")
    assert model.config.param_dtype == "bfloat16"
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), "hugging_face")
    assert_same_tensors(tmp_path / "back", half)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"
    convert(str(tmp_path / "ours"), str(tmp_path / "wide"), "hugging_face", dtype="float32")
    assert_same_tensors(tmp_path / "wide", {name: array.astype(np.float32) for name, array in half.items()})
    # A file of two dtypes is read as the wider of them, which loses nothing.
    mixed = {**half, "shared.weight": stored("t5_1_1")[1]["shared.weight"]}
    _, weights = formats.read(make(tmp_path / "mixed", "t5_1_1", mixed))
    assert weights.config.param_dtype == "float32" and {t.dtype for t in weights.params.values()} == {np.dtype("f4")}


def test_a_byte_vocabulary(tmp_path):
    theirs = make(tmp_path / "theirs", "t5_1_1", tokenizer="ByT5Tokenizer")
    convert(str(theirs), str(tmp_path / "ours"))
    _, _, meta = checkpoints.load_for_inference(tmp_path / "ours")
    assert meta["vocabulary"] == {"kind": "bytes", "extra_ids": EXTRA_IDS}
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), "hugging_face")
    written = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert (written["tokenizer_class"], written["extra_ids"]) == ("ByT5Tokenizer", EXTRA_IDS)


@pytest.mark.parametrize("extra_ids, reverse", [(0, True), (7, True), (7, False)])
def test_sentinels_are_taken_out_of_a_sentencepiece_model(extra_ids, reverse):
    vocabulary = vocabularies.SentencePieceVocabulary(sentencepiece_model(), extra_ids, reverse)
    assert vocabulary.without_sentinels() == sentencepiece_model()


def test_sentinels_in_an_order_that_transformers_cannot_make_are_refused(tmp_path):
    forwards = vocabularies.SentencePieceVocabulary(sentencepiece_model(), 7, reverse_extra_ids=False)
    theirs = make(tmp_path / "theirs", "t5_1_1")
    with pytest.raises(UserError, match="counted downwards"):
        convert(str(theirs), str(tmp_path / "back"), "hugging_face", vocabulary=forwards)
    assert not (tmp_path / "back").exists()


def test_umt5(tmp_path):
    theirs = make(tmp_path / "theirs", "umt5")
    for to, scan_layers in (("ours", True), ("apart", False)):
        convert(str(theirs), str(tmp_path / to), scan_layers=scan_layers)
        model, params, _ = checkpoints.load_for_inference(tmp_path / to)
        assert model.config.relpos_per_layer
        assert_logits(logits(model.config, params, stored("umt5")[2]), stored("umt5")[2])
        convert(str(tmp_path / to), str(tmp_path / f"{to}_back"), "hugging_face")
        assert_same_tensors(tmp_path / f"{to}_back", stored("umt5")[1])
    assert json.loads((tmp_path / "ours_back" / "config.json").read_text())["model_type"] == "umt5"
    # transformers 5 writes this of every umT5.
    newer = make(tmp_path / "newer", "umt5", tie_word_embeddings=True)
    assert not formats.read(newer)[1].config.logits_via_embedding


def test_an_mt5_whose_configuration_says_that_its_head_is_tied_when_it_is_not(tmp_path):
    """As transformers 5 writes it."""
    newer = make(tmp_path / "newer", "t5_1_1", model_type="mt5", tie_word_embeddings=True)
    assert not formats.read(newer)[1].config.logits_via_embedding


def without(tensors, name):
    return {other: array for other, array in tensors.items() if other != name}


@pytest.mark.parametrize(
    "fault, match",
    [
        (lambda t: without(t, "decoder.final_layer_norm.weight"), "missing: decoder.final_layer_norm.weight"),
        (lambda t: {**t, "adapter.weight": np.ones(3, np.float32)}, "unknown: adapter.weight"),
        (lambda t: {**t, "shared.weight": t["shared.weight"][:-1]}, r"shared.weight is \(127, 32\), not \(128, 32\)"),
        (lambda t: {**t, "shared.weight": t["shared.weight"].astype(np.int8)}, "shared.weight is I8"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(fault, match, tmp_path, capsys):
    theirs = make(tmp_path / "theirs", "t5_1_1", fault(stored("t5_1_1")[1]))
    assert cli.main(["convert", f"--from={theirs}", f"--to={tmp_path}/ours"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(match, last), last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_rules_rename_and_drop(tmp_path):
    """A model inside another one's file: a prefix, and a tensor too many."""
    tensors = {f"model.{name}": array for name, array in stored("t5_1_1")[1].items()}
    theirs = make(tmp_path / "theirs", "t5_1_1", {**tensors, "classifier.bias": np.ones(3, np.float32)})
    flags = [f"--from={theirs}", f"--to={tmp_path}/ours", "--gin.convert.format=hugging_face"]
    rules = r"""--gin.convert.assignment_map=[(r"model\.(.*)", r"\1"), ("classifier.*", None)]"""
    assert cli.main(["convert", *flags, rules]) == 0
    assert_same_tensors(tmp_path / "ours", stored("t5_1_1")[1])


@pytest.mark.parametrize(
    "rules, match",
    [
        ([("nothing.*", None)], "'nothing.*' matches no tensor"),
        ([("(", None)], r"'\(', None\) is no"),
        (["shared.*"], "is no"),
        ([("shared.*", r"\2")], "cannot replace shared.weight"),
        ([("(encoder|decoder).final_layer_norm.weight", "norm")], "two tensors the name norm"),
    ],
)
def test_rules_that_make_no_sense(rules, match, tmp_path):
    theirs = make(tmp_path / "theirs", "t5_1_1")
    with pytest.raises(UserError, match=match):
        convert(str(theirs), str(tmp_path / "ours"), assignment_map=rules)


def test_damaged_files_are_said(tmp_path):
    theirs = make(tmp_path / "theirs", "t5_1_1")
    whole = (theirs / "model.safetensors").read_bytes()
    (theirs / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        formats.read(theirs)
    (theirs / "model.safetensors").write_bytes(whole)
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    with pytest.raises(UserError, match="lacks x"):
        formats.read(theirs)
    (theirs / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        formats.read(theirs)


def test_pytorch_files_without_torch(tmp_path, monkeypatch):
    theirs = make(tmp_path / "theirs", "t5_1_1")
    (theirs / "model.safetensors").rename(theirs / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="torch is not installed"):
        formats.read(theirs)


class _Harmful:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("harm"),)


def test_pytorch_files(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    theirs = make(tmp_path / "theirs", "t5_1_1")
    (theirs / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array.copy()) for name, array in stored("t5_1_1")[1].items()}
    torch.save(state, theirs / "pytorch_model.bin")
    convert(str(theirs), str(tmp_path / "back"), "hugging_face")
    assert_same_tensors(tmp_path / "back", stored("t5_1_1")[1])
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, theirs / "pytorch_model.bin")
    convert(str(theirs), str(tmp_path / "half"), "hugging_face")
    half = {name: array.astype(jnp.bfloat16) for name, array in stored("t5_1_1")[1].items()}
    assert_same_tensors(tmp_path / "half", half)
    monkeypatch.chdir(tmp_path)
    torch.save({"shared.weight": _Harmful()}, theirs / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read as weights only"):
        hugging_face_folder.read(theirs)
    assert not (tmp_path / "harm").exists()


def test_infer_reads_the_folder_as_it_is(tmp_path):
    theirs = make(tmp_path / "theirs", "t5_1_1")
    (tmp_path / "in.txt").write_text("the quick fox\nnumbers\n")
    flags = [
        f"--input={tmp_path}/in.txt",
        "--gin.Decoder.max_length=5",
        "--gin.infer.max_input_length=16",
        "--gin.infer.batch_size=8",
    ]
    convert(str(theirs), str(tmp_path / "ours"))
    for name in ("theirs", "ours"):
        configuration.clear()
        assert cli.main(["infer", f"--checkpoint={tmp_path}/{name}", f"--output={tmp_path}/{name}.jsonl", *flags]) == 0
    answers = (tmp_path / "theirs.jsonl").read_text()
    assert answers == (tmp_path / "ours.jsonl").read_text() and len(answers.splitlines()) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_is_written(family, tmp_path, caplog):
    """Without a word, but its own about an untied head; the same logits and the same ids of text."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    transformers.logging.enable_propagation()
    convert(str(make(tmp_path / "theirs", family)), str(tmp_path / "ours"))
    convert(str(tmp_path / "ours"), str(tmp_path / "back"), "hugging_face")
    caplog.clear()
    model, info = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "back", output_loading_info=True)
    said = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert not any(info.values()) and all("tie shared.weight to lm_head.weight" in line for line in said), (info, said)
    assert len(said) == (family == "t5_1_1")
    golden = stored(family)[2]
    sources, inputs = (torch.from_numpy(golden[f"{n}_input_tokens"]).long() for n in ("encoder", "decoder"))
    with torch.no_grad():
        found = model.eval()(input_ids=sources, attention_mask=(sources > 0).long(), decoder_input_ids=inputs).logits
    assert_logits(found.numpy(), golden)
    tokenizer = transformers.T5Tokenizer.from_pretrained(tmp_path / "back")
    vocabulary = vocabularies.SentencePieceVocabulary(sentencepiece_model(), EXTRA_IDS)
    for text in ("the quick fox <extra_id_0> numbers <extra_id_19>", "dog 12"):
        assert tokenizer(text).input_ids == [*vocabulary.encode(text), vocabulary.eos_id]
