"""What of a model is trained: frozen stays frozen, bit by bit, and costs neither a gradient nor state."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finetuned_models import ADDED, ADDED_PATTERNS, CONFIG, EVERYTHING, A, D, F, make_trainer, size
from tiny_models import differing, make_batch, random_params, start

from t5x_lite import optimizers, trainer
from t5x_lite.finetuning import GradualUnfreezing, Trainable
from t5x_lite.losses import Loss
from t5x_lite.models import Model
from t5x_lite.models.finetuning_config import LoRA
from t5x_lite.partitioning import leaves_by_path as paths


def run(a_trainer, steps=3, state=None):
    """[(parameters after each step by path, metrics)], the start first."""
    state = state or start(a_trainer)
    out = [({n: np.array(x) for n, x in paths(state.params).items()}, {})]
    for step in range(steps):
        state, metrics = a_trainer.step(state, jax.device_put(make_batch(seed=step), a_trainer.partitioner.batch))
        out.append(
            ({n: np.array(x) for n, x in paths(state.params).items()}, {k: float(v) for k, v in metrics.items()})
        )
    return out


def grads_of(config, trainable, num_microbatches=1):
    model = Model(config)

    def function(params, batch):
        trained, frozen = trainable.split(params)
        return trainer.loss_and_grads(model, Loss(), trained, batch, jnp.int32(0), 0, num_microbatches, frozen)[0]

    return model, function


def test_gradients_are_those_of_full_finetuning_restricted():
    with jax.enable_x64(True):
        config = dataclasses.replace(EVERYTHING, dtype="float64", param_dtype="float64")
        trainable = Trainable((*ADDED_PATTERNS, "decoder/layers/mlp/wo/kernel"))
        model, part = grads_of(config, trainable)
        _, full = grads_of(config, Trainable())
        params, batch = random_params(config), make_batch()
        found, expected = jax.jit(part)(params, batch), paths(jax.jit(full)(params, batch))
    assert len(expected) == len(paths(params))
    assert paths(found).keys() == {n for n in expected if trainable.trains(n)} and len(paths(found)) < len(expected)
    largest = max(np.abs(grad).max() for grad in expected.values())
    for name, grad in paths(found).items():
        if name.endswith(
            "key/bias"
        ):  # adds the same to all that a query is compared with, which softmax takes out again
            assert max(np.abs(grad).max(), np.abs(expected[name]).max()) < 1e-12 * largest
            continue
        np.testing.assert_allclose(grad, expected[name], rtol=1e-9, atol=1e-12 * np.abs(expected[name]).max())
        assert np.abs(grad).max() > 1e-6 * largest, name


def products(jaxpr, out):
    """Shapes of all matrix products, in inner jaxprs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            out.append(tuple(sorted(equation.outvars[0].aval.shape)))
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    products(inner, out)
    return out


@pytest.mark.parametrize("scan_layers", [True, False])
def test_no_gradient_of_what_is_frozen_is_computed(scan_layers):
    config = dataclasses.replace(CONFIG, lora=LoRA(4), scan_layers=scan_layers)
    shapes, counts = {}, {}
    for name, trainable in (("lora", Trainable((".*/lora_[ab]",))), ("all", Trainable())):
        model, function = grads_of(config, trainable)
        made = jax.make_jaxpr(function)(model.abstract_params(), make_batch())
        shapes[name] = [tuple(aval.shape) for aval in made.out_avals]
        counts[name] = products(made.jaxpr, [])
    kernels = [(D, F), (D, A), (D, CONFIG.vocab_size)]
    assert all(any(sorted(k) == sorted(shape) for shape in counts["all"]) for k in kernels), "the test sees them"
    assert not any(sorted(k) == sorted(shape) for k in kernels for shape in counts["lora"])
    last = {(D, 4), (4, A)}
    assert {shape[-2:] for shape in shapes["lora"]} == last and len(counts["lora"]) < len(counts["all"])


@functools.cache
def lora_run():
    a_trainer = make_trainer(dataclasses.replace(CONFIG, lora=LoRA(4)), Trainable((".*/lora_[ab]",)))
    return a_trainer, run(a_trainer)


def test_frozen_parameters_have_no_state_and_do_not_change():
    a_trainer, states = lora_run()
    names = [n for n in paths(a_trainer.abstract_state.opt_state) if n.split("/")[-1] != "count"]
    assert names and all(n.endswith(("/lora_a", "/lora_b")) for n in names)
    assert size(a_trainer.abstract_state.opt_state) < 1.2 * ADDED["lora"][1] + 100
    for (before, _), (after, _) in itertools.pairwise(states):
        assert set(differing(before, after)) == a_trainer.trained_paths


def test_norms_are_those_of_the_trained():
    a_trainer, states = lora_run()
    _, function = grads_of(a_trainer.model.config, a_trainer.trainable)
    grads = jax.jit(function)(start(a_trainer).params, make_batch(seed=0))
    norm = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(grads)))
    assert states[1][1]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    trained = [x for n, x in states[1][0].items() if a_trainer.trainable.trains(n)]
    assert states[1][1]["param_norm"] == pytest.approx(np.sqrt(sum((x**2).sum() for x in trained)), rel=1e-5)


def test_the_state_is_donated_whole():
    a_trainer, _ = lora_run()
    state = start(a_trainer)
    a_trainer.step(state, jax.device_put(make_batch(), a_trainer.partitioner.batch))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params)), "the frozen ones too: no second copy"
    # Of the optimizer's, the moments; the step does not even read optax's placeholders.
    moments = {n: leaf for n, leaf in paths(state.opt_state).items() if "/v/" in n}
    assert moments and all(leaf.is_deleted() for leaf in moments.values())


def test_with_everything_trained_nothing_is_new():
    """The optimizer's state has the paths that existing checkpoints have, and the gradients are the same program."""
    a_trainer, model = make_trainer(), Model(CONFIG)
    expected = jax.eval_shape(a_trainer.optimizer.init, model.abstract_params())
    assert paths(a_trainer.abstract_state.opt_state).keys() == paths(expected).keys()
    batch = make_batch()

    def through_the_filter(params):
        return grads_of(CONFIG, Trainable())[1](params, batch)

    def without(params):
        return trainer.loss_and_grads(model, Loss(), params, batch, jnp.int32(0), 0)[0]

    made = [str(jax.make_jaxpr(f)(model.abstract_params())) for f in (through_the_filter, without)]
    assert made[0] == made[1]


def mixed_trainer(shape=(1, 1, 1), num_microbatches=1, scan_layers=True):
    """Of all methods at once in float64."""
    config = dataclasses.replace(EVERYTHING, dtype="float64", param_dtype="float64", scan_layers=scan_layers)
    return make_trainer(config, Trainable((*ADDED_PATTERNS, ".*norm/scale")), shape, num_microbatches)


@functools.cache
def mixed_losses(*args):
    """Losses and norms from the trainer's own start, which is the same in every form."""
    with jax.enable_x64(True):
        a_trainer = mixed_trainer(*args)
        states = run(a_trainer, 4, a_trainer.init())
    return np.array([[m[n] for n in ("loss", "grad_norm", "param_norm")] for _, m in states[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("shape, num_microbatches, scan_layers", [((2, 2, 2), 2, True), ((1, 1, 1), 1, False)])
def test_every_mesh_microbatch_and_layout_gives_the_same_run(shape, num_microbatches, scan_layers):
    found = mixed_losses(shape, num_microbatches, scan_layers)
    np.testing.assert_allclose(found, mixed_losses(), rtol=1e-9)
    assert found[-1, 0] != found[0, 0]


def test_what_is_added_is_sharded_as_its_kernel():
    a_trainer = mixed_trainer((2, 2, 2))
    shardings, abstract = paths(a_trainer.shardings.params), paths(a_trainer.abstract_state.params)

    def share(name):
        return shardings[name].shard_shape(abstract[name].shape)

    assert share("encoder/layers/attention/query/lora_a") == (2, D // 2, 4)
    assert share("encoder/layers/attention/query/lora_b") == (2, 4, A // 2)
    assert share("encoder/layers/mlp/wo/ia3_input") == (2, F // 2)
    assert share("decoder/layers/mlp_adapter/wi/kernel") == (3, D // 2, 16)
    slots = {n: s for n, s in paths(a_trainer.shardings.opt_state).items() if n.endswith("query/lora_b") and "/v/" in n}
    assert slots and all(s.spec == shardings["encoder/layers/attention/query/lora_b"].spec for s in slots.values())


# ----------------------------------------------------------------------------------------------------------------------
# Gradual unfreezing
# ----------------------------------------------------------------------------------------------------------------------


def open_layers(depth, episodes, total, step, scanned=True, offset=0):
    layers = (
        {"layers": {"w": jnp.ones((depth, 2))}}
        if scanned
        else {f"layers_{i}": {"w": jnp.ones(2)} for i in range(depth)}
    )
    params = {
        "encoder": {**layers, "relpos_bias": {"rel_embedding": jnp.ones(3)}, "encoder_norm": {"scale": jnp.ones(1)}},
        "token_embedder": {"embedding": jnp.ones(4)},
    }
    trainable = Trainable(unfreezing=GradualUnfreezing(total, episodes, offset=offset))
    mask = paths(trainable.mask(params, params, jnp.int32(step)))
    assert mask["token_embedder/embedding"] and mask["encoder/encoder_norm/scale"]
    if scanned:
        assert mask["encoder/layers/w"].shape == (depth, 1)
        found = np.asarray(mask["encoder/layers/w"][:, 0])
    else:
        found = np.array([mask[f"encoder/layers_{i}/w"] for i in range(depth)])
    assert bool(mask["encoder/relpos_bias/rel_embedding"]) == bool(found.all())
    assert (np.sort(found) == found).all(), "the top layers first"
    return int(found.sum())


@pytest.mark.parametrize("scanned", [True, False])
def test_layers_join_from_the_top(scanned):
    run_of_paper = [open_layers(12, 12, 2**18, step, scanned) for step in (0, 21845, 21846, 43691, 2**18 - 1, 2**18)]
    assert run_of_paper == [1, 1, 2, 3, 12, 12]
    assert [open_layers(24, 12, 12, step, scanned) for step in range(12)] == list(range(2, 25, 2))
    assert [open_layers(4, 12, 12, step, scanned) for step in range(12)] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert [open_layers(3, 3, 30, step, scanned) for step in (0, 9, 10, 19, 20, 29)] == [1, 1, 2, 2, 3, 3]
    assert [open_layers(2, 1, 30, step, scanned) for step in (0, 29)] == [2, 2]
    assert [open_layers(3, 3, 130, step, scanned, offset=100) for step in (0, 100, 109, 110, 129)] == [1, 1, 1, 2, 3]


def test_frozen_layers_stay_bit_by_bit_until_they_join():
    """Three episodes of two steps; both stacks in parallel, whatever their depth."""
    trainable = Trainable(unfreezing=GradualUnfreezing(6, episodes=3))
    optimizer = optimizers.adafactor(
        optimizers.constant_rate(0.01), momentum=0.9, weight_decay_rate=0.1, max_grad_norm=0.5
    )
    states = run(make_trainer(CONFIG, trainable, optimizer=optimizer), 6)
    expected = {"encoder": [1, 1, 2, 2, 2, 2], "decoder": [1, 1, 2, 2, 3, 3]}
    for step in range(6):
        before, after = states[step][0], states[step + 1][0]
        for name in before:
            stack = name.split("/")[0]
            if "/layers/" in name:
                depth = before[name].shape[0]
                moved = [before[name][i].tobytes() != after[name][i].tobytes() for i in range(depth)]
                assert moved == [i >= depth - expected[stack][step] for i in range(depth)], (name, step)
            else:
                still = "relpos_bias" in name and step < {"encoder": 2, "decoder": 4}[stack]
                assert (before[name].tobytes() == after[name].tobytes()) == still, (name, step)


@pytest.mark.slow
def test_unrolled_layers_join_with_the_same_updates():
    def losses(scan_layers):
        with jax.enable_x64(True):
            config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64", scan_layers=scan_layers)
            unfreezing = GradualUnfreezing(4, episodes=3)
            optimizer = optimizers.adamw(optimizers.constant_rate(0.01), max_grad_norm=0.1)
            a_trainer = make_trainer(config, Trainable(unfreezing=unfreezing), optimizer=optimizer)
            states = run(a_trainer, 4, a_trainer.init())
            return np.array([[m[n] for n in ("loss", "grad_norm", "update_norm")] for _, m in states[1:]])

    np.testing.assert_allclose(losses(False), losses(True), rtol=1e-9)
