"""What finetuning methods add to a model, and what of it is trained: nothing changes at the start, frozen stays frozen."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import configuration, decoding, finetuning, gin_files, optimizers, trainer
from t5x_lite.errors import UserError
from t5x_lite.finetuning import GradualUnfreezing, Trainable
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.models.finetuning_config import IA3, METHODS, Adapters, BitFit, LoRA, PromptTuning
from t5x_lite.partitioning import MeshConfig, path_name

# Every width differs from every other, so that no shape is taken for another's; eight devices divide them.
CONFIG = T5Config(
    vocab_size=256, emb_dim=32, num_heads=8, head_dim=8, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=3
)
LAYERS = CONFIG.num_encoder_layers + CONFIG.num_decoder_layers
ATTENTIONS = CONFIG.num_encoder_layers + 2 * CONFIG.num_decoder_layers
D, A, F = CONFIG.emb_dim, CONFIG.num_heads * CONFIG.head_dim, CONFIG.mlp_dim

# (what is added, parameters added): each count by the method's own formula.
ADDED = {
    "adapters": ({"adapters": Adapters(16)}, LAYERS * (D + 2 * D * 16)),
    "adapters_twice": ({"adapters": Adapters(16, ("attention", "mlp"))}, (LAYERS + ATTENTIONS) * (D + 2 * D * 16)),
    "lora": ({"lora": LoRA(4)}, ATTENTIONS * 2 * 4 * (D + A)),
    "lora_mlp": ({"lora": LoRA(4, kernels=("decoder/.*/w[io](_0)?/kernel",))}, 3 * 2 * 4 * (D + F)),
    "ia3": ({"ia3": IA3()}, ATTENTIONS * 2 * A + LAYERS * F),
    "bitfit": ({"bitfit": BitFit()}, ATTENTIONS * (3 * A + D) + LAYERS * (2 * F + D)),
    "prompt": ({"prompt": PromptTuning(5)}, 5 * D),
}
EVERYTHING = dataclasses.replace(
    CONFIG, adapters=Adapters(16, ("attention", "mlp")), lora=LoRA(4), ia3=IA3(), bitfit=BitFit(), prompt=PromptTuning(5)
)
ADDED_PATTERNS = (".*_adapter/.*", ".*/lora_[ab]", ".*/ia3_.*", ".*/bias", "prompt/embedding")


def make_batch(rows=8, s=9, t=6, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, 256, (rows, t)) * (np.arange(t) < rng.integers(1, t + 1, (rows, 1)))
    inputs = rng.integers(3, 256, (rows, s)) * (np.arange(s) < rng.integers(2, s + 1, (rows, 1)))
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": targets > 0,
    }
    return {name: array.astype(np.int32) for name, array in batch.items()}


def make_trainer(config=CONFIG, trainable=trainer.ALL, shape=(1, 1, 1), num_microbatches=1, optimizer=None):
    devices = jax.devices()[: int(np.prod(shape))]
    partitioner = MeshConfig(shape=dict(zip(("data", "fsdp", "tensor"), shape))).build(devices)
    optimizer = optimizer or optimizers.adafactor(optimizers.constant_rate(0.01), multiply_by_parameter_scale=False)
    return trainer.Trainer(Model(config), optimizer, Loss(), partitioner, 0, num_microbatches, trainable)


def paths(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def size(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def bits_equal(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def unstacked(params):
    """The parameters of scanned layers as those of unrolled ones."""
    out = {}
    for name, value in params.items():
        if name == "layers":
            depth = jax.tree.leaves(value)[0].shape[0]
            out |= {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], value) for i in range(depth)}
        else:
            out[name] = unstacked(value) if isinstance(value, dict) else value
    return out


@functools.cache
def initial(config):
    return jax.jit(Model(config).init)(jax.random.key(0))


def drawn(config, seed=1):
    """Parameters away from any start, where every added one has an effect; drawn by NumPy, so nothing compiles."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path_name(path)
        ones = name.endswith("scale") or "ia3" in name
        return jnp.asarray(ones + 0.2 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, Model(config).abstract_params())


@functools.cache
def compiled(config, dropped=False):
    def apply(params, batch):
        keys = trainer.dropout_keys(0, jnp.int32(0), jnp.arange(8)) if dropped else None
        return Model(config).apply(params, batch, keys)

    return jax.jit(apply)


def logits(config, params, dropped=False):
    return np.asarray(compiled(config, dropped)(params, make_batch()))


# ----------------------------------------------------------------------------------------------------------------------
# Modules
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADDED)
def test_what_is_added_has_the_size_of_its_formula(name):
    fields, added = ADDED[name]
    for scan_layers in (True, False):
        model = Model(dataclasses.replace(CONFIG, scan_layers=scan_layers, **fields))
        new = finetuning.select(model.abstract_params(), lambda path, model=model: path in model.added_paths)
        assert size(new) == added == size(model.abstract_params()) - size(Model(CONFIG).abstract_params())


@pytest.mark.parametrize("name, rate", [("adapters_twice", 0.1), ("lora", 0.1), ("ia3", 0.0), ("bitfit", 0.0)])
def test_at_the_start_the_logits_are_the_plain_models_bit_by_bit(name, rate):
    """Also with dropout: no mask of the plain model moves."""
    plain_config = dataclasses.replace(CONFIG, dropout_rate=rate)
    config = dataclasses.replace(plain_config, **ADDED[name][0])
    params, plain = initial(config), initial(CONFIG)
    assert all(bits_equal(leaf, paths(plain)[path]) for path, leaf in paths(params).items() if path in paths(plain))
    expected = logits(plain_config, plain, rate > 0)
    assert (logits(config, params, rate > 0) == expected).all()
    added = finetuning.select(drawn(config), lambda path: path not in paths(plain))
    assert np.abs(logits(config, finetuning.join(plain, added), rate > 0) - expected).max() > 0.1, "it has an effect"


@functools.cache
def everything():
    """A model with all methods at once, away from the start, and its logits."""
    params = drawn(EVERYTHING)
    return Model(EVERYTHING), params, logits(EVERYTHING, params)


def test_unrolled_layers_compute_the_same():
    _, params, expected = everything()
    model = Model(dataclasses.replace(EVERYTHING, scan_layers=False))
    assert paths(unstacked(params)).keys() == paths(model.abstract_params()).keys()
    np.testing.assert_allclose(logits(model.config, unstacked(params)), expected, rtol=1e-5, atol=1e-5)


def test_decoding_with_a_cache_computes_the_same():
    model, params, expected = everything()
    batch = make_batch()

    @jax.jit
    def stepwise(params, inputs, tokens):
        cache = model.init_cache(params, model.encode(params, inputs), inputs, tokens.shape[1])
        out = []
        for i in range(tokens.shape[1]):
            logits, cache = model.decode_step(params, cache, tokens[:, i], jnp.int32(i))
            out.append(logits)
        return jnp.stack(out, axis=1)

    found = stepwise(params, batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    real = batch["decoder_target_tokens"] > 0
    np.testing.assert_allclose(np.asarray(found)[real], expected[real], rtol=1e-4, atol=1e-4)


def test_merged_kernels_compute_the_same():
    config = dataclasses.replace(CONFIG, lora=LoRA(4, alpha=12.0, kernels=(".*/kernel",)), ia3=IA3(), bitfit=BitFit(),
                                 dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        params = drawn(config)
        merged_config, merged = finetuning.merge(config, params)
        assert merged_config == dataclasses.replace(config, lora=None, ia3=None)
        assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, Model(merged_config).abstract_params())
        before, after = logits(config, params), logits(merged_config, merged)
        _, unrolled = finetuning.merge(config, unstacked(params))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), unrolled, unstacked(merged))
    np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-10 * np.abs(before).max())


def test_merged_kernels_compute_the_same_in_float32():
    config = dataclasses.replace(CONFIG, lora=LoRA(4))
    # A change of the size that training makes: larger ones would test how far the network itself spreads rounding.
    added = jax.tree.map(lambda x: x / 4, finetuning.select(drawn(config), lambda path: "lora" in path))
    params = finetuning.join(initial(CONFIG), added)
    merged_config, merged = finetuning.merge(config, params)
    assert merged_config == CONFIG
    before, after = logits(config, params), logits(CONFIG, merged)
    assert np.abs(before - logits(CONFIG, initial(CONFIG))).max() > 0.1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_products_and_adapters_are_what_the_papers_say():
    """Written out once more in NumPy, from one layer of the encoder."""
    from t5x_lite.models.encoder_decoder import EncoderLayer
    from t5x_lite.models.finetuning import adapted, extend

    from flax import nnx

    config = EVERYTHING
    layer = extend(EncoderLayer(config, rngs=nnx.Rngs(params=0)), config, "encoder/layers", rngs=nnx.Rngs(params=1))
    rng = np.random.default_rng(1)
    nnx.update(layer, jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype("float32"), nnx.state(layer)))
    x = np.random.default_rng(0).standard_normal((2, 3, D)).astype(np.float32)

    def array(path):
        return np.asarray(functools.reduce(getattr, path.split("."), layer)[...], np.float64)

    value = x @ array("attention.value.kernel") + 4.0 * x @ array("attention.value.lora_a") @ array("attention.value.lora_b")
    value = (value + array("attention.value.bias")) * array("attention.value.ia3_output")
    np.testing.assert_allclose(layer.attention.value(x), value, rtol=1e-4, atol=1e-4)
    hidden = np.random.default_rng(1).standard_normal((2, 3, F)).astype(np.float32)
    out = (hidden * array("mlp.wo.ia3_input")) @ array("mlp.wo.kernel") + array("mlp.wo.bias")
    np.testing.assert_allclose(layer.mlp.wo(hidden), out, rtol=1e-4, atol=1e-4)
    assert not hasattr(layer.attention.out, "lora_scale") and layer.attention.key.lora_a is None
    normal = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * array("mlp_adapter.layer_norm.scale")
    adapter = x + np.maximum(normal @ array("mlp_adapter.wi.kernel"), 0) @ array("mlp_adapter.wo.kernel")
    np.testing.assert_allclose(adapted(layer, "mlp", x, None), adapter, rtol=1e-4, atol=1e-4)


def test_a_prompt_of_tokens_is_these_tokens_in_front():
    """Mask, relative positions, both attentions and decoding: as if the text were longer."""
    config = dataclasses.replace(CONFIG, prompt=PromptTuning(5, "random"))
    params = initial(CONFIG)
    ids = np.array([7, 3, 200, 90, 7])
    prompted = {**params, "prompt": {"embedding": params["token_embedder"]["embedding"][ids]}}
    batch = make_batch()
    longer = {**batch, "encoder_input_tokens": np.concatenate([np.tile(ids, (8, 1)), batch["encoder_input_tokens"]], 1)}
    longer["encoder_input_tokens"] = longer["encoder_input_tokens"].astype(np.int32)
    expected = np.asarray(jax.jit(Model(CONFIG).apply)(params, longer))
    np.testing.assert_allclose(logits(config, prompted), expected, rtol=1e-6, atol=1e-6)
    decode = jax.jit(decoding.decode, static_argnums=(0, 3))
    found = decode(Model(config), prompted, batch["encoder_input_tokens"], 4)
    again = decode(Model(CONFIG), params, longer["encoder_input_tokens"], 4)
    assert (found[0] == again[0]).all() and (np.asarray(found[0]) > 0).any()
    np.testing.assert_allclose(found[1], again[1], rtol=1e-5)


@pytest.mark.parametrize("start", ["vocabulary", "random"])
def test_where_a_prompt_starts(start):
    config = dataclasses.replace(CONFIG, prompt=PromptTuning(20, start, sampled_from=100))
    params = initial(config)
    table = np.asarray(params["token_embedder"]["embedding"])
    rows = np.asarray(params["prompt"]["embedding"])
    other = {**params, "token_embedder": {"embedding": params["token_embedder"]["embedding"] + 1.0}}
    fresh = np.asarray(Model(config).with_fresh_prompt(other, jax.random.key(1))["prompt"]["embedding"])
    if start == "random":
        assert np.abs(rows).max() <= 0.5 and 0.25 < np.abs(rows).mean() * 1.2 < 0.35 and (fresh == rows).all()
        return
    for found, among in ((rows, table), (fresh, table + 1.0)):
        matches = (found[:, None] == among[None]).all(-1)
        ids = matches.argmax(1)
        assert matches.any(1).all() and ids.min() >= 3 and ids.max() < 100 and len(set(ids)) == 20


def test_packed_rows_have_no_prompt():
    model = Model(dataclasses.replace(CONFIG, prompt=PromptTuning(5)))
    batch = make_batch()
    packed = {**batch, "encoder_segment_ids": np.ones_like(batch["encoder_input_tokens"]),
              "decoder_segment_ids": np.ones_like(batch["decoder_input_tokens"])}
    with pytest.raises(UserError, match="SeqioSource.packing = False"):
        jax.eval_shape(model.apply, model.abstract_params(), packed)


# ----------------------------------------------------------------------------------------------------------------------
# Configuration
# ----------------------------------------------------------------------------------------------------------------------


def test_the_configuration_survives_json():
    import json

    assert set(METHODS) <= {field.name for field in dataclasses.fields(T5Config)}
    written = json.loads(json.dumps(EVERYTHING.to_dict()))
    assert T5Config.from_dict(written) == EVERYTHING
    assert written["lora"] == {"rank": 4, "alpha": 16.0, "kernels": [".*/(query|value)/kernel"]}
    assert not set(METHODS) & CONFIG.to_dict().keys(), "a plain model's checkpoint says nothing of them"
    assert T5Config.from_dict(CONFIG.to_dict()) == CONFIG == EVERYTHING.plain()
    with pytest.raises(UserError, match="unknown fields of lora: rnak"):
        T5Config.from_dict({**CONFIG.to_dict(), "lora": {"rnak": 3}})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Adapters(0), "Adapters.inner_dim must be a whole number"),
        (lambda: Adapters(8, ("norm",)), "Adapters.after must name some of attention, mlp"),
        (lambda: LoRA(0), "LoRA.rank must be a whole number"),
        (lambda: LoRA(kernels=("(",)), "'\\(' is no regular expression"),
        (lambda: LoRA(kernels=()), "LoRA.kernels is empty"),
        (lambda: PromptTuning(0), "PromptTuning.length must be"),
        (lambda: PromptTuning(start="zeros"), "PromptTuning.start must be one of vocabulary, random"),
        (lambda: dataclasses.replace(CONFIG, lora=8), "T5Config.lora must be None or @LoRA\\(\\), not 8"),
        (lambda: Model(dataclasses.replace(CONFIG, lora=LoRA(kernels=(".*", "nothing")))).abstract_params() and
            Model(dataclasses.replace(CONFIG, lora=LoRA(kernels=(".*", "nothing")))).logical_axes(),
         "LoRA.kernels: 'nothing' matches no kernel"),
        (lambda: Trainable(("(",)), "Trainable.patterns: '\\(' is no regular expression"),
        (lambda: Trainable(()), "Trainable.patterns is empty"),
        (lambda: make_trainer(trainable=Trainable((".*", ".*/lora_[ab]"))).shardings,
         r"Trainable.patterns: '.\*/lora_\[ab\]' matches no parameter"),
        (lambda: GradualUnfreezing(0), "GradualUnfreezing.total_steps must be"),
        (lambda: GradualUnfreezing(10, episodes=0), "GradualUnfreezing.episodes must be"),
        (lambda: GradualUnfreezing(10, offset=10), "GradualUnfreezing.offset = 10 must be below total_steps = 10"),
        (lambda: make_trainer(trainable=Trainable(unfreezing=GradualUnfreezing(9, always=("x",)))).shardings,
         "GradualUnfreezing.always: 'x' matches no parameter"),
    ],
)
def test_what_makes_no_sense_is_one_line(make, message):
    with pytest.raises(UserError) as e:
        make()
    assert re.search(message, str(e.value).splitlines()[0])  # gin appends lines, which the command line leaves out


GIN_FILES = {  # parameters added to T5 1.1 small, and parameters trained
    "adapters": (16 * (512 + 2 * 512 * 128), 16 * (512 + 2 * 512 * 128) + 512 * (2 * 8 + 3 * 8 + 2)),
    "lora": (344_064, 344_064),
    "ia3": (34_816, 34_816),
    "prompt": (51_200, 51_200),
    "bitfit": (80_896, 80_896),
    "gradual_unfreezing": (0, 76_961_152),
}


def test_every_gin_file_is_in_the_table():
    shipped = [name for name in gin_files.shipped_names() if name.startswith("finetuning/")]
    assert shipped == sorted(f"finetuning/{name}.gin" for name in GIN_FILES)


@pytest.mark.parametrize("name", GIN_FILES)
def test_gin_files_train_what_they_say(name):
    import t5x_lite.data  # noqa: F401
    import t5x_lite.jobs.train  # noqa: F401

    added, trained = GIN_FILES[name]
    file = f"finetuning/{name}.gin"
    # In any order, and the example's own learning rate stays.
    for files in ([file, "runs/finetune.gin", "models/t5_1_1/small.gin"], ["examples/quickstart_finetune.gin", file]):
        configuration.parse(files, ["MODEL_DIR=x", "MIXTURE_OR_TASK_NAME=x", "INITIAL_CHECKPOINT_PATH=x"], root="train")
        model, trainable = Model(T5Config()), Trainable()
        assert make_trainer(trainable=trainable, config=model.config).trained_paths
        if "examples" in files[0]:
            assert float(optimizers.constant_rate()(0)) == pytest.approx(0.03)
            continue
        split = trainable.split(model.abstract_params())
        assert (size(model.abstract_params()) - 76_961_152, size(split[0])) == (added, trained)
        with open(gin_files.find_file(file).path, encoding="utf-8") as f:
            text = f.read()
        assert name in ("adapters", "gradual_unfreezing") or f"{added:,}" in text
    configuration.clear()


# ----------------------------------------------------------------------------------------------------------------------
# Training a part
# ----------------------------------------------------------------------------------------------------------------------


def run(a_trainer, steps=3):
    """[(parameters after each step by path, metrics)], the start first."""
    state = a_trainer.init()
    out = [({n: np.array(x) for n, x in paths(state.params).items()}, {})]
    for step in range(steps):
        state, metrics = a_trainer.step(state, jax.device_put(make_batch(seed=step), a_trainer.partitioner.batch))
        out.append(({n: np.array(x) for n, x in paths(state.params).items()}, {k: float(v) for k, v in metrics.items()}))
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
        params, batch = drawn(config), make_batch()
        found, expected = jax.jit(part)(params, batch), paths(jax.jit(full)(params, batch))
    assert len(expected) == len(paths(params))
    assert paths(found).keys() == {n for n in expected if trainable.trains(n)} and len(paths(found)) < len(expected)
    for name, grad in paths(found).items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-9, atol=1e-12 * np.abs(expected[name]).max())
        assert np.abs(grad).max() > 0, name


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
    for (before, _), (after, _) in zip(states, states[1:]):
        for name in before:
            assert bits_equal(before[name], after[name]) == (not a_trainer.trainable.trains(name)) or (
                # A's gradient is zero as long as B is.
                name.endswith("lora_a") and before is states[0][0]
            ), name


def test_norms_are_those_of_the_trained():
    a_trainer, states = lora_run()
    _, function = grads_of(a_trainer.model.config, a_trainer.trainable)
    grads = jax.jit(function)(a_trainer.init().params, make_batch(seed=0))
    norm = np.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in jax.tree.leaves(grads)))
    assert states[1][1]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    trained = [x for n, x in states[1][0].items() if a_trainer.trainable.trains(n)]
    assert states[1][1]["param_norm"] == pytest.approx(np.sqrt(sum((x**2).sum() for x in trained)), rel=1e-5)


def test_the_state_is_donated_whole():
    a_trainer, _ = lora_run()
    state = a_trainer.init()
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


@functools.cache
def mixed_run(shape=(1, 1, 1), num_microbatches=1, scan_layers=True):
    """All methods at once in float64; losses and norms."""
    with jax.enable_x64(True):
        config = dataclasses.replace(EVERYTHING, dtype="float64", param_dtype="float64", scan_layers=scan_layers)
        a_trainer = make_trainer(config, Trainable((*ADDED_PATTERNS, ".*norm/scale")), shape, num_microbatches)
        states = run(a_trainer, 4)
    return a_trainer, np.array([[m[n] for n in ("loss", "grad_norm", "param_norm")] for _, m in states[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("shape, num_microbatches, scan_layers", [((2, 2, 2), 2, True), ((1, 1, 1), 1, False)])
def test_every_mesh_microbatch_and_layout_gives_the_same_run(shape, num_microbatches, scan_layers):
    found = mixed_run(shape, num_microbatches, scan_layers)[1]
    np.testing.assert_allclose(found, mixed_run()[1], rtol=1e-9)
    assert found[-1, 0] != found[0, 0]


def test_what_is_added_is_sharded_as_its_kernel():
    a_trainer, _ = mixed_run((2, 2, 2), 2, True)
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
    layers = {"layers": {"w": jnp.ones((depth, 2))}} if scanned else {f"layers_{i}": {"w": jnp.ones(2)} for i in range(depth)}
    params = {"encoder": {**layers, "relpos_bias": {"rel_embedding": jnp.ones(3)}, "encoder_norm": {"scale": jnp.ones(1)}},
              "token_embedder": {"embedding": jnp.ones(4)}}
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
    optimizer = optimizers.adafactor(optimizers.constant_rate(0.01), momentum=0.9, weight_decay_rate=0.1, max_grad_norm=0.5)
    states = run(make_trainer(CONFIG, trainable, optimizer=optimizer), 6)
    expected = {"encoder": [1, 1, 2, 2, 2, 2], "decoder": [1, 1, 2, 2, 3, 3]}
    for step in range(6):
        before, after = states[step][0], states[step + 1][0]
        for name in before:
            stack = name.split("/")[0]
            if "/layers/" in name:
                depth = before[name].shape[0]
                moved = [not bits_equal(before[name][i], after[name][i]) for i in range(depth)]
                assert moved == [i >= depth - expected[stack][step] for i in range(depth)], (name, step)
            else:
                still = "relpos_bias" in name and step < {"encoder": 2, "decoder": 4}[stack]
                assert bits_equal(before[name], after[name]) == still, (name, step)


@pytest.mark.slow
def test_unrolled_layers_join_with_the_same_updates():
    def losses(scan_layers):
        with jax.enable_x64(True):
            config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64", scan_layers=scan_layers)
            unfreezing = GradualUnfreezing(4, episodes=3)
            optimizer = optimizers.adamw(optimizers.constant_rate(0.01), max_grad_norm=0.1)
            states = run(make_trainer(config, Trainable(unfreezing=unfreezing), optimizer=optimizer), 4)
            return np.array([[m[n] for n in ("loss", "grad_norm", "update_norm")] for _, m in states[1:]])

    np.testing.assert_allclose(losses(False), losses(True), rtol=1e-9)
