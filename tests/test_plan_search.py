"""The search for a way to run a step: what is reckoned, and the job that compiles what promises most."""

import dataclasses
import json

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from npz_runs import write_rows

from t5x_lite import cli, optimizers
from t5x_lite.errors import UserError
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig
from t5x_lite.plan import search
from t5x_lite.plan.estimate import State, estimate
from t5x_lite.plan.hardware import Hardware
from t5x_lite.trainer import Trainer

CONFIG = T5Config(
    vocab_size=256, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=3, num_decoder_layers=3
)
LENGTHS = {"inputs": 64, "targets": 16}
MESH = {"data": 1, "fsdp": 8, "tensor": 1}


def trainer_of(mesh=MESH, config=CONFIG) -> Trainer:
    return Trainer(Model(config), optimizers.adamw(optimizers.constant_rate(1e-3)), Loss(), MeshConfig(mesh).build())


def estimated(mesh=MESH, parts=1, hardware="cpu:8", **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return estimate(config, State.of(trainer_of(mesh)), Hardware.parse(hardware), mesh, parts, 64, LENGTHS, 1e9)


def test_state_is_shared_by_the_devices_that_shard_it():
    numbers = sum(x.size for x in jax.tree.leaves(trainer_of().abstract_state.params))
    whole, parts = State.of(trainer_of({"data": 8, "fsdp": 1, "tensor": 1})), State.of(trainer_of())
    assert whole.params == 4 * numbers and whole.opt_state == 2 * 4 * numbers + 2 * 4  # and AdamW's counters
    assert whole.params / 8 < parts.params < whole.params / 8 * 1.1
    assert parts.parameters == numbers


def test_what_saves_memory_costs_time():
    none, minimal, full = (estimated(remat=remat) for remat in ("none", "minimal", "full"))
    assert none.memory > minimal.memory > full.memory
    assert none.step < minimal.step < full.step
    assert full.seconds["compute"] == pytest.approx(none.seconds["compute"] * 4 / 3)
    halves = estimated(parts=4)
    assert halves.memory < none.memory and halves.seconds["links"] > none.seconds["links"]


XXL = T5Config(
    vocab_size=32128,
    emb_dim=4096,
    num_heads=64,
    head_dim=64,
    mlp_dim=10240,
    num_encoder_layers=24,
    num_decoder_layers=24,
    dtype="bfloat16",
    remat="full",
)


# GiB of a device: parameters, peak, sent over fsdp, over tensor. Of compiled programs: tests/benchmarks/PLANS.md.
@pytest.mark.parametrize(
    "name, mesh, params, peak, fsdp, tensor",
    [
        ("v5e:16x16", (1, 64, 4), 0.16, 5.17, 17.6, 35.3),
        ("v5p:4x4x8", (1, 32, 4), 0.32, 11.14, None, 70.6),  # over fsdp that one sends half, and waits for neighbours
        ("v4:8x8x8", (1, 128, 4), 0.08, 2.70, 17.8, 17.6),
        ("2xv5e:16x16", (2, 256, 1), 0.16, 1.93, 54.4, 0.0),
    ],
)
def test_estimates_are_near_what_the_compiler_says_of_t5_xxl(name, mesh, params, peak, fsdp, tensor):
    hardware, gib = Hardware.parse(name), 2**30
    mesh = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))
    state = State(int(params * gib), int(0.01 * gib), 11_135_332_352)
    found = estimate(XXL, state, hardware, mesh, 1, 2048, {"inputs": 512, "targets": 114}, hardware.peak)
    assert found.memory / gib == pytest.approx(peak, rel=0.15)
    sent = sum(x for x in (fsdp, tensor) if x)
    if fsdp is not None:
        assert found.seconds["links"] * hardware.chip.links / gib == pytest.approx(sent, rel=0.15)


def test_what_spans_hosts_goes_over_the_network():
    mesh = {"data": 4, "fsdp": 8, "tensor": 1}
    state = State(1 << 20, 1 << 20, 1 << 18)
    apart = estimate(CONFIG, state, Hardware.parse("h100:32"), mesh, 1, 64, LENGTHS, 1e12)
    assert apart.seconds["network"] > 0 and apart.seconds["links"] > 0
    mesh = {"data": 1, "fsdp": 8, "tensor": 1}
    assert estimate(CONFIG, state, Hardware.parse("h100:8"), mesh, 1, 64, LENGTHS, 1e12).seconds["network"] == 0
    mesh = {"data": 2, "fsdp": 16, "tensor": 1}
    slices = estimate(CONFIG, state, Hardware.parse("2xv5e:4x4"), mesh, 1, 64, LENGTHS, 1e12)
    assert slices.seconds["network"] > 0 and slices.seconds["links"] > 0


@pytest.mark.parametrize("name", ["cpu:8", "h100:32", "2xv5e:4x4", "v4:4x4x4"])
def test_meshes_use_all_devices_and_keep_tensor_within_the_links(name):
    hardware = Hardware.parse(name)
    found = list(search.meshes(hardware))
    assert len({tuple(mesh.values()) for mesh in found}) == len(found) > 3
    for mesh in found:
        assert mesh["data"] * mesh["fsdp"] * mesh["tensor"] == hardware.number
        assert hardware.near % mesh["tensor"] == 0
        assert not hardware.is_tpu or mesh["data"] % hardware.slices == 0


def ways(limit=None, batch_size=64, config=CONFIG, monkeypatch=None):
    hardware = Hardware.parse("cpu:8")
    if limit:
        monkeypatch.setattr("t5x_lite.plan.hardware._machine_memory", lambda: 8.0 * limit)
    return search.search_ways(
        trainer_of(config=config), MeshConfig(), jax.devices(), hardware, batch_size, LENGTHS, 1e9
    )


def test_ways_that_fit_come_first_and_the_fastest_of_them(monkeypatch):
    roomy = ways()
    assert [w.num_microbatches for w in roomy] == [1] * len(roomy)
    assert [w.estimate.step for w in roomy] == sorted(w.estimate.step for w in roomy)
    assert {w.remat for w in roomy} == {"none", "minimal", "full"} and roomy[0].remat == "none"
    limit = 3 * State.of(trainer_of({"data": 8, "fsdp": 1, "tensor": 1})).params  # which needs four times its own
    tight = ways(limit, monkeypatch=monkeypatch)
    fits = [w.estimate.memory <= search.USABLE * limit for w in tight]
    assert any(fits) and not all(fits) and fits == sorted(fits, reverse=True)
    assert any(w.num_microbatches > 1 for w in tight)


def test_what_divides_neither_model_nor_batch_is_left_out():
    assert {w.mesh["tensor"] for w in ways()} == {1, 2, 4}, "there are four heads"
    assert all(w.mesh["data"] * w.mesh["fsdp"] <= 4 for w in ways(batch_size=4))
    with pytest.raises(UserError, match="plan.search: no mesh of 8 devices divides both the model and BATCH_SIZE = 3"):
        ways(batch_size=3, config=dataclasses.replace(CONFIG, num_heads=3))


def run(*flags):
    return cli.main(
        [
            "plan",
            "--hardware=cpu:8",
            "--gin_file=models/t5_1_1/mini.gin",
            "--gin_file=runs/pretrain.gin",
            "--gin.BATCH_SIZE=16",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
            *flags,
        ]
    )


@pytest.mark.slow
def test_the_best_is_named_as_flags_that_give_it(tmp_path, capsys):
    assert run("--search", f"--json={tmp_path}/best.json") == 0
    out = capsys.readouterr().out
    best = json.loads((tmp_path / "best.json").read_text())
    assert out.count(": compiling ...") == 3 and "3 compiled, 3 fit" in out
    assert f"best: {best['flags']}" in out
    assert best["flags"] == (
        f'--gin.MESH="{best["mesh"]}" --gin.T5Config.remat={best["remat"]} '
        f"--gin.train.num_microbatches={best['num_microbatches']}"
    )


def test_where_nothing_fits_that_is_the_answer(monkeypatch, capsys):
    monkeypatch.setattr("t5x_lite.plan.hardware._machine_memory", lambda: 8e3)
    monkeypatch.setattr("t5x_lite.jobs.plan.MOST_COMPILED", 1)
    assert run("--search") == 1
    out = capsys.readouterr().out
    assert "none of the 1 that promise most fits" in out and "DOES NOT FIT" in out


@pytest.fixture
def no_cache_yet():
    """JAX opens one cache in a process, the first that it is told of."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


def test_train_starts_from_a_saved_step(no_cache_yet, tmp_path, capsys):
    folder = tmp_path / "steps"
    write_rows(tmp_path / "rows.npz", 64, lengths=(16, 8))
    model = ["--gin_file=mesh/cpu8.gin", "--gin.T5Config.emb_dim=32", "--gin.T5Config.mlp_dim=32"]

    def steps():
        return [file.name for file in folder.glob("*train_step*-cache")]

    assert run(f"--save={folder}", "--gin.SeqioSource.packing=False", *model) == 0
    assert f"--gin.compilation_cache.folder={folder}" in capsys.readouterr().out
    saved = steps()
    assert len(saved) == 1
    assert (
        cli.main(
            [
                "train",
                "--gin_file=models/t5_1_1/mini.gin",
                "--gin_file=runs/train_npz.gin",
                *model,
                "--gin.BATCH_SIZE=16",
                f"--gin.NPZ_PATTERN={tmp_path}/rows.npz",
                "--gin.TRAIN_STEPS=1",
                f"--model_dir={tmp_path}/run",
            ]
        )
        == 0
    )
    assert steps() == saved, "train has compiled another step"


def test_what_no_gpu_can_run_is_not_saved(capsys):
    assert cli.main(["plan", "--hardware=h100:8", "--save=steps"]) == 2
    assert "--save: for h100:8 only an estimate is compiled" in capsys.readouterr().err
