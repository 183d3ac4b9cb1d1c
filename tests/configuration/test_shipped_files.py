"""The gin files that are shipped: what their models weigh, and what each says of itself."""

import math
import re

import jax
import pytest

from t5x_lite import configuration, gin_files, models

PARAMETERS = {  # embeddings counted once when tied, twice when not; T5 1.0's are in the paper's section 3.7, rounded
    "models/t5_1_0/mini.gin": 1_181_440,
    "models/t5_1_0/small.gin": 60_506_624,
    "models/t5_1_0/base.gin": 222_903_552,
    "models/t5_1_0/large.gin": 737_668_096,
    "models/t5_1_0/3b.gin": 2_851_598_336,
    "models/t5_1_0/11b.gin": 11_307_321_344,
    "models/t5_1_1/mini.gin": 1_836_800,
    "models/t5_1_1/small.gin": 76_961_152,
    "models/t5_1_1/base.gin": 247_577_856,
    "models/t5_1_1/large.gin": 783_150_080,
    "models/t5_1_1/xl.gin": 2_849_757_184,
    "models/t5_1_1/xxl.gin": 11_135_332_352,
    "models/mt5/small.gin": 300_176_768,
    "models/mt5/base.gin": 582_401_280,
    "models/mt5/large.gin": 1_229_581_312,
    "models/mt5/xl.gin": 3_742_619_648,
    "models/mt5/xxl.gin": 12_921_057_280,
    "models/umt5/small.gin": 306_601_984,
    "models/umt5/base.gin": 592_043_520,
    "models/umt5/xl.gin": 3_768_356_864,
    "models/umt5/xxl.gin": 12_972_531_712,
    "models/byt5/small.gin": 299_637_760,
    "models/byt5/base.gin": 581_653_248,
    "models/byt5/large.gin": 1_228_183_552,
    "models/byt5/xl.gin": 3_737_801_728,
    "models/byt5/xxl.gin": 12_906_899_328,
    "models/ul2/20b.gin": 19_591_209_984,
    "models/study/shared.gin": 137_949_312,
    "models/study/six_layers.gin": 123_790_080,
    "models/study/causal_lm.gin": 109_628_544,
    "models/study/prefix_lm.gin": 109_628_544,
    "models/study/2x.gin": 502_746_112,
    "models/study/4x.gin": 972_590_080,
}
# Shapes of T5 1.1 under the names of what was trained on from there.
PARAMETERS |= {
    f"models/{family}/{size}.gin": PARAMETERS[f"models/t5_1_1/{size}.gin"]
    for family in ("t5_1_1_lm_adapted", "flan_t5")
    for size in ("small", "base", "large", "xl", "xxl")
}
# Trained, pretraining included, or meant to be finetuned with dropout; the others were pretrained without.
WITH_DROPOUT = ("t5_1_0", "flan_t5", "study")


def _model_files():
    return [name for name in gin_files.shipped_names() if name.startswith("models/")]


def test_every_model_file_is_in_the_table():
    assert {name for name in _model_files() if not name.endswith("family.gin")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    configuration.parse([name], root="T5Config")
    model = models.Model(models.T5Config())
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract_params())) == PARAMETERS[name]
    with open(gin_files.find_file(name).path, encoding="utf-8") as f:
        assert f"# Expect: {PARAMETERS[name]:,} parameters" in f.read()
    assert models.T5Config().dropout_rate == (0.1 if name.split("/")[1] in WITH_DROPOUT else 0.0)
    configuration.parse([name], ["DROPOUT_RATE=0.3"])
    assert models.T5Config().dropout_rate == 0.3


@pytest.mark.parametrize("name", gin_files.shipped_names())
def test_headers_and_includes_of_shipped_files(name):
    with open(gin_files.find_file(name).path, encoding="utf-8") as f:
        text = f.read()
    header = text.split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header) and len(header) >= 4
    assert "t5x-lite " in "".join(header)  # the command that uses it
    includes = re.findall(r"^include (.*)$", text, flags=re.MULTILINE)
    assert all(include.startswith(("'t5x_lite/gin/", '"t5x_lite/gin/')) for include in includes)
