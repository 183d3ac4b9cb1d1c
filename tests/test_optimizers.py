"""Adafactor against T5X's own trajectory, layer by layer; schedules."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import optimizers

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def trajectory():
    with np.load(FIXTURES / "t5x_adafactor.npz") as arrays:
        return json.loads((FIXTURES / "t5x_adafactor.json").read_text()), dict(arrays)


def names_of(settings, arrays, name):
    return [p for p in settings["sets"][name]["params"] if f"{name}/params0/{p}" in arrays]


def is_stacked(settings, name, parameter):
    return "layers" in settings["sets"][name]["params"][parameter]["logical_axes"]


def follow(trajectory, name, parameters, ours, layers_first):
    """Applies the stored gradients; compares each step's parameters, in our layout `layers_first(p, theirs)`."""
    settings, arrays = trajectory
    optimizer = optimizers.adafactor(
        optimizers.inverse_square_root(4), min_dim_size_to_factor=settings["sets"][name]["min_dim_size_to_factor"]
    )

    def stored(group):
        return {ours(p): jnp.asarray(layers_first(p, arrays[f"{name}/{group}/{p}"])) for p in parameters}

    params = stored("params0")
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(settings["steps"]):
        params, state, metrics = update(stored(f"grads/{step:02d}"), state, params, jnp.int32(step))
        np.testing.assert_allclose(metrics["learning_rate"], settings["learning_rate"][step], rtol=1e-6)
        for p, expected in stored(f"params/{step:02d}").items():
            scale = np.abs(expected).max()
            np.testing.assert_allclose(params[p] / scale, expected / scale, atol=1e-6, rtol=0, err_msg=f"{p} {step}")
    return state


@pytest.mark.parametrize("name", ["default_min128", "min8"])
def test_twenty_steps_follow_t5x(trajectory, name):
    settings, arrays = trajectory
    parameters = [p for p in names_of(settings, arrays, name) if not is_stacked(settings, name, p)]
    assert parameters
    follow(trajectory, name, parameters, ours=lambda p: p, layers_first=lambda p, array: array)


def test_twenty_steps_of_stacked_layers_follow_t5x(trajectory):
    """T5X has the layers on axis 1 and clips, scales and factors each layer by itself; ours are stacked on axis 0."""
    settings, arrays = trajectory
    parameters = [p for p in names_of(settings, arrays, "min8") if is_stacked(settings, "min8", p)]
    axes = {p: settings["sets"]["min8"]["params"][p]["logical_axes"].index("layers") for p in parameters}
    assert {len(arrays[f"min8/params0/{p}"].shape) for p in parameters} == {2, 3} and set(axes.values()) == {1}
    state = follow(
        trajectory,
        "min8",
        parameters,
        ours=lambda p: f"layers/{p}",
        layers_first=lambda p, array: np.moveaxis(array, axes[p], 0),
    )
    # The second moments themselves, too: a kernel's factored, a scale's whole.
    slots = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    for slot, p, axis in (("v_row", "scan/wi/kernel", 1), ("v_col", "scan/wi/kernel", 0), ("v", "scan/norm/scale", 1)):
        (found,) = [leaf for path, leaf in slots.items() if path.endswith(f"/{slot}/layers/{p}")]
        expected = np.moveaxis(arrays[f"min8/final_state/{p}/{slot}"], axis, 0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stacked_layers_are_updated_as_if_they_stood_alone(trajectory):
    settings, arrays = trajectory
    name = "min8"
    parameters = [p for p in names_of(settings, arrays, name) if not is_stacked(settings, name, p)]
    optimizer = optimizers.adafactor(optimizers.inverse_square_root(4), min_dim_size_to_factor=8)
    rng = np.random.default_rng(0)
    start = [{p: arrays[f"{name}/params0/{p}"] * scale for p in parameters} for scale in (1.0, 3.0)]
    both = {"layers": {p.replace("/", "."): jnp.stack([s[p] for s in start]) for p in parameters}}
    alone = [{p.replace("/", "."): jnp.asarray(s[p]) for p in parameters} for s in start]
    both_state, alone_states = optimizer.init(both), [optimizer.init(a) for a in alone]
    update = jax.jit(optimizer.update)
    for step in range(3):
        # Layers whose gradients differ in size: clipping over the stack would mix them.
        grads = [
            {n: jnp.asarray(rng.normal(size=x.shape) * scale, jnp.float32) for n, x in alone[0].items()}
            for scale in (1.0, 100.0)
        ]
        stacked_grads = {"layers": {n: jnp.stack([g[n] for g in grads]) for n in grads[0]}}
        both, both_state, _ = update(stacked_grads, both_state, both, jnp.int32(step))
        for layer in range(2):
            alone[layer], alone_states[layer], _ = update(
                grads[layer], alone_states[layer], alone[layer], jnp.int32(step)
            )
            for n, x in alone[layer].items():
                np.testing.assert_allclose(both["layers"][n][layer], x, rtol=1e-6, atol=1e-7)


def test_schedules():
    rsqrt = optimizers.inverse_square_root()
    assert float(rsqrt(jnp.int32(0))) == pytest.approx(0.01) == float(rsqrt(jnp.int32(10_000)))
    assert float(rsqrt(jnp.int32(40_000))) == pytest.approx(0.005)
    offset = optimizers.inverse_square_root(warmup_steps=100, offset=1_000_000)
    assert float(offset(jnp.int32(1_000_400))) == pytest.approx(0.05)
    assert float(optimizers.constant_rate(0.25)(jnp.int32(7))) == 0.25
    warm = optimizers.constant_rate(1.0, warmup_steps=4)
    assert [float(warm(jnp.int32(n))) for n in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]


def test_a_rate_of_zero_moves_nothing():
    """So the rate that is logged is the one that is used."""
    optimizer = optimizers.adafactor(optimizers.constant_rate(0.0))
    params = {"layers": {"w": jnp.ones((2, 3))}, "v": jnp.arange(3.0)}
    grads = jax.tree.map(lambda x: x + 1.0, params)
    moved, _, metrics = jax.jit(optimizer.update)(grads, optimizer.init(params), params, jnp.int32(0))
    assert float(metrics["learning_rate"]) == 0.0 == float(metrics["update_norm"]) < float(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, moved, params)


def test_clipping_by_global_norm_keeps_the_direction():
    optimizer = optimizers.adamw(optimizers.constant_rate(1e-3), max_grad_norm=1.0)
    params = {"a": jnp.ones(4), "b": jnp.ones(3)}
    grads = {"a": jnp.full(4, 30.0), "b": jnp.full(3, 40.0)}
    _, state, metrics = optimizer.update(grads, optimizer.init(params), params, jnp.int32(0))
    norm = (4 * 30.0**2 + 3 * 40.0**2) ** 0.5
    assert float(metrics["grad_norm"]) == pytest.approx(norm)
    np.testing.assert_allclose(state[0].mu["a"], 0.1 * 30.0 / norm, rtol=1e-5)


def test_counters_can_go_on_from_a_checkpoints_step():
    optimizer = optimizers.adafactor(optimizers.constant_rate(1e-3))
    state = optimizers.set_counts(optimizer.init({"layers": {"w": jnp.ones((2, 3))}, "v": jnp.ones(3)}), 1000)
    counts = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if "count" in str(path[-1])]
    assert counts and all((c == 1000).all() for c in counts)
