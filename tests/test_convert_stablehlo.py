"""A model served without this library: exported, then loaded and run where it cannot be imported."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from processes import one_device
from tiny_models import random_params

from t5x_lite import cli, decoding
from t5x_lite.interop import native
from t5x_lite.interop import weights as w
from t5x_lite.models import Model, T5Config

CONFIG = T5Config(
    vocab_size=384, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=2, num_decoder_layers=2
)

SERVE = """
import sys
for name in ("t5x_lite", "flax", "orbax", "gin"):
    sys.modules[name] = None
import jax, numpy as np
from jax import export
from safetensors.numpy import load_file

folder, given, out = sys.argv[1:]
inputs = np.load(given)
params = load_file(f"{folder}/model.safetensors")
program = {n: export.deserialize(bytearray(open(f"{folder}/{n}.stablehlo", "rb").read())) for n in ("predict", "score")}
assert set(program["predict"].platforms) == {"cpu", "cuda", "tpu"}
ids, scores = program["predict"].call(params, inputs["inputs"])
fewer, _ = program["predict"].call(params, inputs["inputs"][:1])
given_scores = program["score"].call(params, inputs["inputs"], inputs["targets"])
np.savez(out, ids=ids, scores=scores, fewer=fewer, given_scores=given_scores)
"""


def test_a_process_without_this_library_gives_the_same_ids_and_scores(tmp_path):
    rng = np.random.default_rng(0)
    tree = random_params(CONFIG)
    params = w.split(
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): w.Tensor.of(np.asarray(leaf))
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
    )
    vocabulary = {"kind": "bytes", "extra_ids": 125}
    native.write(native.epath.Path(tmp_path / "run"), w.Weights(CONFIG, params, 3, vocabulary))
    flags = [
        "--format=stablehlo",
        "--gin.convert.input_length=10",
        "--gin.convert.target_length=7",
        "--gin.Decoder.max_length=6",
    ]
    assert cli.main(["convert", f"--from={tmp_path}/run", f"--to={tmp_path}/served", *flags]) == 0

    inputs, targets = (rng.integers(3, 259, (3, n)).astype(np.int32) for n in (10, 7))
    inputs[1, 6:], targets[2, 4:] = 0, 0
    np.savez(tmp_path / "given.npz", inputs=inputs, targets=targets)
    arguments = [tmp_path / "served", tmp_path / "given.npz", tmp_path / "out.npz"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", SERVE, *arguments], capture_output=True, text=True, timeout=300, env=one_device()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")

    model = Model(CONFIG)
    ids, scores = jax.jit(functools.partial(decoding.decode, model, max_length=6))(tree, jnp.asarray(inputs))
    np.testing.assert_array_equal(found["ids"], ids)
    np.testing.assert_array_equal(found["fewer"], ids[:1])
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-5)
    batch = {
        "encoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    }
    given_scores = jax.jit(functools.partial(decoding.score, model))(tree, batch)
    np.testing.assert_allclose(found["given_scores"], given_scores, rtol=1e-5)

    described = json.loads((tmp_path / "served" / "vocabulary.json").read_text())
    assert described == {**vocabulary, "eos_id": 1, "pad_id": 0}
    readme = (tmp_path / "served" / "README.md").read_text()
    assert "int32 [b, 10]" in readme and "int32 [b, 6]" in readme and "method 'greedy'" in readme
