"""Plans: hardware by name, what a compiled program sends, and the job from the command line."""

import dataclasses
import json
import types

import jax
import pytest
from tiny_models import make_batch

from t5x_lite import cli, optimizers
from t5x_lite.errors import UserError
from t5x_lite.jobs import plan
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import DEFAULT_RULES, MeshConfig
from t5x_lite.plan.collectives import BETWEEN_SLICES, Collective, collectives
from t5x_lite.plan.hardware import CHIPS, Hardware
from t5x_lite.plan.program import Program, TooLarge, _too_large, batch_shapes, compile_step
from t5x_lite.plan.summary import link_seconds
from t5x_lite.trainer import Trainer

CONFIG = T5Config(
    vocab_size=256, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=3, num_decoder_layers=3
)


@pytest.mark.parametrize(
    "name, number, near",
    [
        ("v5e:16x16", 256, 256),
        ("v4:8x8x8", 512, 512),
        ("2xv5e:16x16", 512, 256),
        ("v3:4x4", 32, 32),
        ("h200:64", 64, 8),
        ("cpu:8", 8, 8),
    ],
)
def test_hardware_has_devices_and_neighbours(name, number, near):
    hardware = Hardware.parse(name)
    assert (hardware.number, hardware.near) == (number, near)


def test_every_chip_but_the_cpu_has_a_published_peak():
    assert [name for name in CHIPS if Hardware(f"{name}:1", name, "1").peak is None] == ["cpu"]


@pytest.mark.parametrize("name", ["v5e", "v9:4x4", "h100:8x8", "2xcpu:8", "v5e:16*16", "0"])
def test_other_hardware_is_refused(name):
    with pytest.raises(UserError, match=f"--hardware={name.replace('*', '.')}: .*write"):
        Hardware.parse(name)


PROGRAM = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ag = f32[4,8]{1,0} all-gather(%x), replica_groups=[4,2]<=[2,2,2]T(0,2,1), dimensions={0}
  ROOT %t = (s32[], f32[4]) tuple(%i, %y)
}

%all-reduce-scatter.1 (p: bf16[16]) -> bf16[8] {
  %ar = bf16[16]{0} all-reduce(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(0,1)) {'axis_0'}
  ROOT %slice = bf16[8]{0} dynamic-slice(%ar, %i)
}

%start (p: f32[4]) -> f32[8] {
  ROOT %ag = f32[8]{0} all-gather(%p), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

%done (p: f32[4]) -> f32[8] {
  ROOT %ag = f32[8]{0} all-gather(%p), channel_id=3, replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %first = f32[8]{0} fusion(%p), kind=kCustom, calls=%start
  %second = f32[8]{0} fusion(%p), kind=kCustom, calls=%done
  %loop = (s32[], f32[4]) while(%init), condition=%condition, body=%body
  %told = (s32[], f32[4]) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %ar = f32[100]{0} all-reduce(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %fused = bf16[8]{0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  %start = (f32[10]{0}, f32[20]{0}) all-gather-start(%z), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %done = f32[20]{0} all-gather-done(%start)
  %out = (bf16[44,8]{1,0}, u32[], token[]) send(%z, %t), frontend_attributes={_handler_name="xla_megascale_runtime"}
  ROOT %cp = f32[6]{0} collective-permute(%w), source_target_pairs={{0,4},{4,0}}
}
"""


def test_what_a_program_sends_is_read_from_its_text():
    found = collectives(PROGRAM, {"data": 2, "fsdp": 2, "tensor": 2})
    assert set(found) == {
        Collective("all-gather", ("fsdp",), (5 + 2) * 32 * 4 / 2, 7),
        Collective("all-reduce", ("tensor",), 2 * 400 / 2, 1),
        Collective("all-gather", ("tensor",), 32 / 2, 1),
        Collective("reduce-scatter", ("data",), 32 / 2, 1),
        Collective("all-gather", ("data", "fsdp", "tensor"), 80 * 7 / 8, 1),
        Collective("collective-permute", ("data",), 24, 1),
        Collective(BETWEEN_SLICES, ("data",), 44 * 8 * 2, 1),
    }


def test_the_program_of_several_slices_is_that_of_one():
    within = collectives(
        "ENTRY %main (p: f32[4]) -> f32[4] {\n  %ar = f32[4]{0} all-reduce(%p), replica_groups={{0,1},{2,3}}\n}",
        {"data": 2, "fsdp": 4},
        2,
    )
    assert within == [Collective("all-reduce", (), 2 * 16 / 2, 1)]  # pairs are no axis of a slice's four
    within = collectives(
        "ENTRY %main (p: f32[4]) -> f32[4] {\n  %ar = f32[4]{0} all-reduce(%p), replica_groups={{0,1,2,3}}\n}",
        {"data": 2, "fsdp": 4},
        2,
    )
    assert within == [Collective("all-reduce", ("fsdp",), 2 * 16 * 3 / 4, 1)]


@pytest.mark.parametrize(
    "axes, network", [(("data",), True), (("fsdp",), False), (("tensor",), False), (("data", "tensor"), True)]
)
def test_the_outermost_axes_reach_beyond_a_host(axes, network):
    sent = [Collective("all-reduce", axes, 1e9, 1)]
    seconds = link_seconds(sent, Hardware.parse("h100:32"), {"data": 4, "fsdp": 4, "tensor": 2})
    assert seconds == {"links": 0 if network else 1e9 / 450e9, "network": 1e9 / 50e9 if network else 0}


def test_slices_share_the_first_axis():
    devices = [types.SimpleNamespace(platform="tpu", slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match="the 2 slices are joined by the network alone and share the axis data"):
        MeshConfig({"data": 1, "fsdp": 8}).build(devices)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shape, kinds",
    [
        ("v5e:2x2", {"data": 1, "fsdp": 2, "tensor": 2}, {"all-gather", "all-reduce"}),
        ("2xv5e:2x2", {"data": 2, "fsdp": 4}, {"all-gather", BETWEEN_SLICES}),
        ("v4:2x2x2", {"data": 1, "fsdp": 4, "tensor": 2}, {"all-gather", "all-reduce"}),
    ],
)
def test_a_tpu_that_is_not_there(name, shape, kinds):
    pytest.importorskip("libtpu", reason="pip install t5x-lite[tpu]")
    config = dataclasses.replace(CONFIG, dtype="bfloat16", remat="full")
    t = Trainer(
        Model(config),
        optimizers.adafactor(optimizers.constant_rate(1e-3)),
        Loss(),
        MeshConfig(shape).build(Hardware.parse(name).devices()),
    )
    program = compile_step(t, batch_shapes(t, 16, {"inputs": 128, "targets": 32}, packed=True))
    assert program.arguments < program.peak < 1e9
    assert kinds <= {c.kind for c in program.collectives}
    assert all(c.axes for c in program.collectives if c.sent > 1e5)
    # Parameters are gathered for each of three layers, forward, again for the backward pass, and in it.
    assert sum(c.times for c in program.collectives if c.kind == "all-gather") > 3 * 3 * 6


def trainer(shape) -> Trainer:
    return Trainer(Model(CONFIG), optimizers.adamw(optimizers.constant_rate(1e-3)), Loss(), MeshConfig(shape).build())


@pytest.fixture(scope="module")
def data_parallel():
    t = trainer({"data": 8})
    return t, compile_step(t, batch_shapes(t, 16, {"inputs": 9, "targets": 6}, packed=True))


def test_data_parallel_steps_send_their_gradients_and_little_else(data_parallel):
    t, program = data_parallel
    assert isinstance(program, Program)
    gradients = sum(x.size * 4 for x in jax.tree.leaves(t.abstract_state.params))
    sent = {(c.kind, c.axes): c.sent for c in program.collectives}
    twice = 256 * 32 * 4  # the embedding's gradients of encoder and decoder are summed over devices apart
    assert 1 <= sent["all-reduce", ("data",)] / (2 * 7 / 8 * (gradients + twice)) < 1.02
    assert sum(sent.values()) < 1.05 * sent["all-reduce", ("data",)]


def test_sharded_parameters_are_gathered_over_their_axis_layer_by_layer():
    t = trainer({"data": 1, "fsdp": 8})
    program = compile_step(t, batch_shapes(t, 16, {"inputs": 9, "targets": 6}, packed=False))
    gathers = [c for c in program.collectives if c.kind == "all-gather" and c.axes == ("fsdp",)]
    parameters = sum(x.size * 4 for x in jax.tree.leaves(t.abstract_state.params))
    # Once forward, once backward, each receiving all but its own share.
    assert sum(c.sent for c in gathers) == pytest.approx(2 * 7 / 8 * parameters, rel=0.3)
    assert program.arguments < parameters * 3 / 8 * 1.5


def test_a_planned_batch_is_a_real_ones_shape(data_parallel):
    t, _ = data_parallel
    planned = batch_shapes(t, 16, {"inputs": 9, "targets": 6}, packed=False)
    real = make_batch(16, 9, 6)
    assert {n: (x.shape, x.dtype) for n, x in planned.items()} == {n: (x.shape, x.dtype) for n, x in real.items()}


def test_out_of_memory_is_an_answer():
    refused = _too_large(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.99G of 15.75G hbm. Exceeded hbm capacity "
        'by 2.24G.\n\nLargest program allocations in hbm:\n\n  1. Size: 2.00G\n     Operator: op_name="jit(f)/mul"\n'
        "     Shape: f32[512,1024,1024]{2,1,0}\n     Unpadded size: 2.00G\n     XLA label: fusion.1 = fusion(x)\n",
        1.0,
    )
    assert isinstance(refused, TooLarge)
    assert (refused.used, refused.limit) == (17.99 * 2**30, 15.75 * 2**30)
    assert refused.largest == ["2.00G f32[512,1024,1024]{2,1,0} jit(f)/mul"]


def run(*flags):
    return cli.main(
        [
            "plan",
            "--gin_file=models/t5_1_1/mini.gin",
            "--gin_file=runs/pretrain.gin",
            "--gin.BATCH_SIZE=16",
            "--gin.TASK_FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
            *flags,
        ]
    )


def test_the_job_needs_the_runs_gin_files_alone(tmp_path, capsys):
    mesh = "--gin.MESH={'data': 2, 'fsdp': 2, 'tensor': 2}"
    assert run("--hardware=cpu:8", mesh, f"--json={tmp_path}/plan.json") == 0
    out = capsys.readouterr().out
    assert "1,836,800 numbers" in out and "a step takes at least" in out
    made = json.loads((tmp_path / "plan.json").read_text())
    assert made["fits"] and made["peak"] + made["headroom"] == made["memory"]
    assert made["tokens_a_step"] == 16 * 24
    assert {"all-reduce", "all-gather"} <= {c["kind"] for c in made["collectives"]}
    # More than a quarter: what is small stays whole.
    assert 1_836_800 * 4 / 4 < made["parameter_bytes"] < 1_836_800 * 4 / 2


def test_large_parameters_that_no_rule_shards_are_named():
    rules = tuple((name, None if name == "vocab" else axes) for name, axes in DEFAULT_RULES)
    shape = {"data": 2, "fsdp": 1, "tensor": 4}

    def of(rules):
        return plan.replicated(
            Trainer(
                Model(CONFIG),
                optimizers.adafactor(optimizers.constant_rate(1e-3)),
                Loss(),
                MeshConfig(shape, rules).build(),
            )
        )

    assert of(DEFAULT_RULES) == {}
    shape = {"data": 8}
    assert of(DEFAULT_RULES) == {}  # whose devices share the batch alone
    shape = {"data": 2, "fsdp": 1, "tensor": 4}
    assert of(rules) == {"token_embedder/embedding": 256 * 32 * 4, "decoder/logits_dense/kernel": 256 * 32 * 4}


def test_mistakes_are_told_before_compiling(capsys):
    assert run("--hardware=cpu:8", "--gin.MESH={'data': 3}") == 2
    assert "does not fit the 8 cpu device(s)" in capsys.readouterr().err
    assert cli.main(["plan", "--hardware=cpu:8"]) == 2
    assert "bind no train.model, train.optimizer" in capsys.readouterr().err
    assert run("--hardware=v5e") == 2
    assert "--hardware=v5e: no such hardware" in capsys.readouterr().err
