"""This project's own checkpoints into other forms: stacked or not, other meshes and dtypes; and convert's manners."""

import dataclasses
import functools
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import checkpoints, cli, configuration, optimizers
from t5x_lite.errors import UserError
from t5x_lite.interop import formats, native
from t5x_lite.interop import weights as w
from t5x_lite.jobs.convert import convert
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.partitioning import MeshConfig
from t5x_lite.trainer import Trainer

# Depths differ, so that a stack's label and counters are told apart; sizes that Adafactor factors.
CONFIG = T5Config(
    vocab_size=96, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=1
)
POSITIONS = {"positions": np.arange(4, dtype=np.int64).reshape(2, 2)}
META = {"vocabulary": {"kind": "bytes", "extra_ids": 0}, "feature_lengths": {"inputs": 8}}
OPTIMIZERS = {
    "adafactor": lambda: optimizers.adafactor(optimizers.constant_rate(0.02), min_dim_size_to_factor=16, momentum=0.9),
    "adamw": lambda: optimizers.adamw(optimizers.constant_rate(0.01)),
}
STEP = 2


@functools.cache  # so that each form's step is compiled once
def make_trainer(scanned, optimizer="adafactor", shape=(1, 1, 1)):
    partitioner = MeshConfig(shape=dict(zip(("data", "fsdp", "tensor"), shape))).build(jax.devices()[: np.prod(shape)])
    model = Model(dataclasses.replace(CONFIG, scan_layers=scanned))
    return Trainer(model, OPTIMIZERS[optimizer](), Loss(), partitioner)


def batch(step):
    tokens = np.random.default_rng(step).integers(2, 96, (4, 6)).astype(np.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    return {**dict.fromkeys(names, tokens), "decoder_loss_weights": np.ones_like(tokens)}


def train(trainer, state, steps):
    for _ in range(steps):
        state, _ = trainer.step(state, batch(int(state.step)))
    return state


def restore(folder, trainer):
    return checkpoints.Checkpointer(folder).restore(trainer.abstract_state, trainer.shardings, POSITIONS)


def flat(scanned, params):
    """Arrays by path, layers apart."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): w.Tensor.of(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }
    return {path: tensor.read() for path, tensor in (w.split(leaves) if scanned else leaves).items()}


def folder_of(tmp_path_factory, scanned, optimizer):
    """A run at its second step, and its trainer: trained, or of a state of random numbers."""
    folder = tmp_path_factory.mktemp("run") / "run"
    trainer = make_trainer(scanned, optimizer)
    if optimizer == "adafactor":
        state = train(trainer, trainer.init(), STEP)
    else:
        rng = np.random.default_rng(0)
        filled = jax.tree.map(
            lambda x: rng.normal(size=x.shape).astype(x.dtype) if x.ndim else np.full_like(x, STEP),
            jax.tree.map(np.asarray, trainer.init()),
        )
        state = jax.device_put(filled, trainer.shardings)
    checkpointer = checkpoints.Checkpointer(folder)
    checkpointer.save(state, POSITIONS, {**META, "model": trainer.model.config.to_dict()})
    checkpointer.close()
    return folder, trainer, state


@pytest.fixture(
    scope="module",
    params=[("adafactor", True), ("adafactor", False), ("adamw", True)],
    ids=["adafactor, stacked", "adafactor, apart", "adamw, stacked"],
)
def run(request, tmp_path_factory):
    optimizer, scanned = request.param
    return optimizer, scanned, *folder_of(tmp_path_factory, scanned, optimizer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return folder_of(tmp_path_factory, True, "adafactor")[0]


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


def test_stacked_or_apart_and_back(run, tmp_path):
    """All of the state comes along: parameters, moments, momenta, every counter; the next five updates are the same."""
    optimizer, scanned, folder, trainer, state = run
    convert(str(folder), str(tmp_path / "other"), scan_layers=not scanned)
    other = make_trainer(not scanned, optimizer)
    restored = restore(tmp_path / "other", other)
    convert(str(tmp_path / "other"), str(tmp_path / "back"), scan_layers=scanned)
    assert same(restore(tmp_path / "back", trainer).state, state)
    assert int(restored.state.step) == STEP
    assert (restored.data["positions"] == POSITIONS["positions"]).all()
    assert restored.meta["feature_lengths"] == META["feature_lengths"]
    if optimizer != "adafactor":
        return  # its updates go element by element, so the state's equality says it all
    before = flat(scanned, state.params)
    # Training donates what it is given, and the module's other tests need it.
    expected = flat(scanned, train(trainer, jax.tree.map(jnp.copy, state), 5).params)
    found = flat(not scanned, train(other, restored.state, 5).params)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        moved = np.abs(array - before[path]).max()
        assert moved > 0.0
        np.testing.assert_allclose(found[path], array, rtol=0, atol=1e-6 * np.abs(array).max(), err_msg=path)


def test_what_is_converted_is_restored_on_another_mesh(saved, tmp_path):
    convert(str(saved), str(tmp_path / "apart"), scan_layers=False)
    trainer = make_trainer(False, shape=(2, 2, 2))
    state = restore(tmp_path / "apart", trainer).state
    kernel = state.params["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    assert len(kernel.sharding.device_set) == 8 and not kernel.is_fully_replicated
    _, weights = formats.read(saved)
    np.testing.assert_array_equal(kernel, weights.params["encoder/layers_1/mlp/wo/kernel"].read())


def test_another_dtype_without_the_optimizers_state(saved, tmp_path):
    flags = ["--gin.convert.dtype=bfloat16", "--gin.convert.optimizer_state=False"]
    assert cli.main(["convert", f"--from={saved}", f"--to={tmp_path}/half", *flags]) == 0
    model, params, meta = checkpoints.load_for_inference(tmp_path / "half")
    assert model.config == dataclasses.replace(CONFIG, param_dtype="bfloat16") and meta["vocabulary"]["kind"] == "bytes"
    _, weights = formats.read(saved)
    for path, array in flat(True, params).items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, weights.params[path].read().astype(jnp.bfloat16), err_msg=path)
    step = tmp_path / "half" / "checkpoints" / str(STEP)
    assert not (step / "opt_state").exists() and not (step / "data").exists()


def test_a_dry_run_writes_nothing(saved, tmp_path, capsys):
    assert cli.main(["convert", f"--from={saved}", f"--to={tmp_path}/new", "--dry_run"]) == 0
    assert "would write" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, match",
    [
        (["--from={saved}/nowhere", "--to={tmp}/new"], "no checkpoint under .*nowhere"),
        (["--from={saved}", "--to={saved}"], "exists: name a new folder"),
        (
            ["--from={saved}", "--to={tmp}/new", "--format=pytorch"],
            "convert.format must be one of t5x_lite, hugging_face",
        ),
        (["--from={saved}", "--to={tmp}/new", "--gin.convert.dtype=int8"], "convert.dtype must be one of"),
        (["--from={saved}", "--to={tmp}/new", "--gin.convert.step=7"], "no checkpoint of step 7 .* there are 2"),
        (["--from={saved}", "--to={tmp}/new", "--gin.convert.max_shard_bytes=0"], "max_shard_bytes must be"),
        (["--from={saved}", "--to={tmp}/new", "--format=t5x"], "only the state of Adafactor without momentum"),
        (
            ["--from={saved}", "--to={tmp}/new", "--format=stablehlo", "--gin.convert.input_length=0"],
            "input_length must",
        ),
        (["--from={saved}/checkpoints/2/_CHECKPOINT_METADATA", "--to={tmp}/new"], "no checkpoint under"),
        (["--from={saved}"], "--to"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(saved, flags, match, tmp_path, capsys):
    assert cli.main(["convert", *(flag.format(saved=saved, tmp=tmp_path) for flag in flags)]) == 2
    configuration.clear()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("t5x-lite: error: ")
    assert re.search(match, last), last
    assert not any(tmp_path.iterdir())


def test_a_model_that_does_not_fit_is_refused(saved, tmp_path):
    model = dataclasses.replace(CONFIG, mlp_dim=48, logits_via_embedding=True)
    with pytest.raises(UserError, match="unknown: decoder/logits_dense/kernel; of another shape: decoder/layers_0/m"):
        convert(str(saved), str(tmp_path / "new"), model=model)
    assert not any(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_nothing(saved, tmp_path, monkeypatch):
    def fail(folder, weights):
        native_write(folder, weights)
        raise OSError("no space left on device")

    native_write = native.write
    monkeypatch.setattr(native, "write", fail)
    with pytest.raises(OSError, match="no space"):
        convert(str(saved), str(tmp_path / "new"))
    assert not any(tmp_path.iterdir())


class Counted(np.ndarray):
    """An array that knows how many bytes of its kind are alive."""

    alive = most = 0

    def __array_finalize__(self, base):
        self.own = self.nbytes if base is None else 0
        Counted.alive += self.own
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= getattr(self, "own", 0)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("format", ["t5x_lite", "hugging_face", "t5x"])
def test_one_tensor_at_a_time(format, scan_layers, tmp_path, monkeypatch):
    """Of what the source gives, no more is alive at any time than the largest tensor, whatever the model's size."""
    config = dataclasses.replace(CONFIG, num_encoder_layers=6, num_decoder_layers=6, scan_layers=scan_layers)

    def tensor(leaf):
        def read():
            array = Counted(leaf.shape, leaf.dtype)
            array[...] = 1.0
            return array

        return w.Tensor(leaf.shape, np.dtype(leaf.dtype), read)

    params = {path: tensor(leaf) for path, leaf in w.expected_params(config).items()}
    monkeypatch.setattr(native, "GROUP_BYTES", 0)  # the model is smaller than what is otherwise written together
    Counted.alive = Counted.most = 0
    weights = w.Weights(config, params)
    largest = max(t.nbytes for t in params.values())
    total = sum(t.nbytes for t in params.values())
    if format == "t5x_lite":
        native.write(native.epath.Path(tmp_path / "new"), weights)
    elif format == "hugging_face":
        formats.hugging_face_folder.write(native.epath.Path(tmp_path / "new"), weights)
    else:
        formats.t5x.write(native.epath.Path(tmp_path / "new"), weights)
    assert 0 < Counted.most <= 2 * largest < total / 10


def test_a_stack_is_read_once_and_let_go():
    reads = []

    def read(name):
        reads.append(name)
        return np.full((3, 2), len(reads))

    apart = w.split({f"{n}/layers/w": w.Tensor((3, 2), np.dtype(int), lambda n=n: read(n)) for n in ("a", "b")})
    assert [apart[f"a/layers_{i}/w"].read()[0] for i in range(3)] == [1, 1, 1] and reads == ["a"]
    assert w._Last.kept is None
    # Asked for in another order, the values are right and still no more than one stack is kept.
    assert [apart[f"{n}/layers_{i}/w"].read().shape for i in range(3) for n in ("a", "b")] == [(2,)] * 6
    assert w._Last.kept is None or w._Last.kept._array is not None


MEASURED = """
import re, sys
from t5x_lite.jobs import convert
source, target, format = sys.argv[1:]
# Not getrusage's: that begins with what the process had before this program was put into it, which is pytest's.
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
# A first, tiny conversion loads everything that is loaded once.
convert.convert(source + "/tiny", target + "/tiny", format)
before = peak()
convert.convert(source + "/large", target + "/large", format)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_conversion(tmp_path):
    """There and back, half a gigabyte of parameters in stacks of 50 MB at most: measured in processes of their own."""
    large = T5Config(
        vocab_size=4096,
        emb_dim=512,
        num_heads=8,
        head_dim=64,
        mlp_dim=2048,
        num_encoder_layers=12,
        num_decoder_layers=12,
    )
    for name, config in (("tiny", CONFIG), ("large", large)):
        rng = np.random.default_rng(0)
        params = {
            path: w.Tensor(leaf.shape, np.dtype("f4"), lambda s=leaf.shape, rng=rng: rng.random(s, np.float32))
            for path, leaf in w.expected_params(config).items()
        }
        native.write(native.epath.Path(tmp_path / "native" / name), w.Weights(config, params))
    stacks = w.stacked(params).values()
    largest, total = max(t.nbytes for t in stacks), sum(t.nbytes for t in stacks)
    for source, target, format in (("native", "hf", "hugging_face"), ("hf", "back", "t5x_lite"), ("hf", "t5x", "t5x")):
        done = subprocess.run(
            [sys.executable, "-P", "-c", MEASURED, tmp_path / source, tmp_path / target, format],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        grown = int(done.stdout.split()[-1]) * 1024
        print(f"{source} -> {target}: {grown / 2**20:.0f} MB for {total / 2**20:.0f} MB, largest {largest / 2**20:.0f}")
        # What is written together, and what compresses it, comes on top of the largest stack.
        assert grown < 2 * largest + 4 * native.GROUP_BYTES < total
