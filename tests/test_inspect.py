"""What `inspect` shows of checkpoints and configurations, through the command line."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import random_params

from t5x_lite import checkpoints, cli, configuration
from t5x_lite.models import T5Config
from t5x_lite.trainer import TrainState

CONFIG = T5Config(
    vocab_size=64,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=1,
    logits_via_embedding=False,
)


def save(folder, config=CONFIG, steps=(1, 2)):
    """Checkpoints of other parameters at each step."""
    with checkpoints.Checkpointer(folder) as checkpointer:
        for step in steps:
            state = TrainState(jnp.int32(step), random_params(config, step), {"count": jnp.int32(step)})
            meta = {"model": config.to_dict(), "vocabulary": None, "meaning": {"BATCH_SIZE": "8"}}
            checkpointer.save(state, {"positions": np.zeros((4, 2), np.int64)}, meta)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"))


def shown(capsys, *arguments):
    """What is printed as JSON."""
    configuration.clear()
    assert cli.main(["inspect", *arguments, "--json=-"]) == 0
    configuration.clear()
    return json.loads(capsys.readouterr().out)


def error(capsys, *arguments):
    assert cli.main(["inspect", *arguments]) == 2
    return capsys.readouterr().err


def test_arrays_and_description_of_a_checkpoint(model_dir, capsys):
    found = shown(capsys, f"--checkpoint={model_dir}")
    model, params, meta = checkpoints.load_for_inference(model_dir)
    leaves = checkpoints.leaves_by_path(params)
    expected = {n: {"shape": list(a.shape), "dtype": str(a.dtype), "bytes": a.nbytes} for n, a in leaves.items()}
    assert found["arrays"]["params"] == expected and found["step"] == 2 and found["format"] == "t5x_lite"
    assert {"params", "opt_state", "data"} == set(found["arrays"]) and found["arrays"]["data"]["positions"]["shape"][
        1
    ] == 2
    assert found["about"]["model"] == meta["model"] and found["about"]["vocabulary"] is None
    assert found["arrays"]["opt_state"] == {"count": {"shape": [], "dtype": "int32", "bytes": 4}}
    assert shown(capsys, f"--checkpoint={model_dir}/checkpoints/1")["step"] == 1


def test_the_text_has_sums(model_dir, capsys):
    assert cli.main(["inspect", f"--checkpoint={model_dir}"]) == 0
    out = capsys.readouterr().out
    leaves = checkpoints.leaves_by_path(checkpoints.load_for_inference(model_dir)[1]).values()
    count, size = sum(a.size for a in leaves), sum(a.nbytes for a in leaves)
    assert f"{len(leaves)} arrays, {count:,} numbers, {size:,} bytes" in out
    assert "token_embedder/embedding" in out and "64×16" in out


def test_two_checkpoints(model_dir, tmp_path, capsys):
    one, two = f"{model_dir}/checkpoints/1", f"{model_dir}/checkpoints/2"
    found = shown(capsys, f"--checkpoint={one}", f"--against={two}")
    a, b = (checkpoints.leaves_by_path(checkpoints.load_for_inference(path)[1]) for path in (one, two))
    name = "token_embedder/embedding"
    gap = np.abs(np.asarray(a[name], np.float64) - np.asarray(b[name], np.float64))
    assert found["different"][name]["largest"] == pytest.approx(gap.max(), rel=1e-6)
    relative = np.linalg.norm(gap) / np.linalg.norm(np.asarray(a[name], np.float64))
    assert found["different"][name]["relative"] == pytest.approx(relative, rel=1e-6)
    assert (found["step"], found["against_step"], found["model"]) == (1, 2, {})
    assert shown(capsys, f"--checkpoint={two}", f"--against={two}")["different"] == {}
    # Of another system, and of another model.
    assert cli.main(["convert", f"--from={two}", f"--to={tmp_path}/theirs", "--format=hugging_face"]) == 0
    capsys.readouterr()
    assert shown(capsys, f"--checkpoint={two}", f"--against={tmp_path}/theirs")["different"] == {}
    wider = save(tmp_path / "wider", dataclasses.replace(CONFIG, mlp_dim=24), steps=[2])
    found = shown(capsys, f"--checkpoint={two}", f"--against={wider}")
    assert found["model"] == {"mlp_dim": [16, 24]}
    assert found["different"]["encoder/layers_0/mlp/wo/kernel"] == {"what": "shape [16, 16] against [24, 16]"}
    assert cli.main(["inspect", f"--checkpoint={one}", f"--against={two}"]) == 0
    assert "0 parameters are equal" in capsys.readouterr().out


def test_every_binding_with_its_place(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("mine.gin").write_text(
        "include 'models/t5_1_1/mini.gin'\ninclude 'runs/pretrain.gin'\n\nBATCH_SIZE = 4\ntrain.log_every = 5\n"
    )
    found = shown(capsys, "--gin_file=mine.gin", "--gin.BATCH_SIZE=16", "--gin.T5Config.dropout_rate=0.25")
    by_name = {entry["name"]: entry for entry in found["bindings"]}
    assert len(by_name) == len(found["bindings"])
    shipped = by_name["BATCH_SIZE"].pop("instead_of")
    assert by_name["BATCH_SIZE"] == {"name": "BATCH_SIZE", "value": "16", "where": "--gin.BATCH_SIZE"}
    assert [one["value"] for one in shipped] == ["128", "4"] and shipped[1]["where"] == "mine.gin:4"
    assert by_name["train.log_every"]["where"] == "mine.gin:5" and not by_name["train.log_every"]["instead_of"]
    file, line = shipped[0]["where"].rsplit(":", 1)
    text = (pathlib.Path(__file__).parents[1] / file.removeprefix("t5x_lite/")).read_text().splitlines()
    assert text[int(line) - 1].startswith("BATCH_SIZE = 128")
    assert by_name["train.batch_size"]["value"] == "%BATCH_SIZE" and by_name["train.model"]["value"] == "@T5Config()"
    assert found["not_set"] == ["MIXTURE_OR_TASK_NAME", "MODEL_DIR"]
    # What is in force is what a run would have.
    configuration.parse(["mine.gin"], ["BATCH_SIZE=16"], incomplete=True)
    assert configuration.bound_values()["BATCH_SIZE"] == "16"


def test_the_text_of_a_configuration_and_its_file(tmp_path, capsys):
    json_file = tmp_path / "deep" / "found.json"
    assert cli.main(["inspect", "--gin_file=models/t5_1_1/mini.gin", f"--json={json_file}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("T5Config.vocab_size ")]
    assert line.split()[1] == "4096" and "models/t5_1_1/mini.gin:" in line and "32128 (" in line
    assert any(entry["name"] == "T5Config.vocab_size" for entry in json.loads(json_file.read_text())["bindings"])


def test_a_mistake_in_the_configuration_is_one(capsys):
    files = ["--gin_file=models/t5_1_1/mini.gin", "--gin_file=runs/pretrain.gin"]
    assert "no binding refers to the macro BACH_SIZE" in error(capsys, *files, "--gin.BACH_SIZE=3")
    assert "has no parameter 'bach_size'" in error(capsys, *files, "--gin.train.bach_size=3")


def test_what_cannot_be_looked_at(tmp_path, capsys):
    assert "nothing to look at: give --task=NAME" in error(capsys)
    assert "--against needs --checkpoint" in error(capsys, f"--against={tmp_path}")
    assert "two things to look at" in error(capsys, f"--checkpoint={tmp_path}", "--task=any")
    assert "no checkpoint under" in error(capsys, f"--checkpoint={tmp_path}")
