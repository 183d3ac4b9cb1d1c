"""Finetuning methods as they are configured: JSON, mistakes, and the shipped gin files."""

import dataclasses
import json
import re

import pytest
from finetuned_models import CONFIG, EVERYTHING, make_trainer, size

from t5x_lite import configuration, gin_files, optimizers
from t5x_lite.errors import UserError
from t5x_lite.finetuning import GradualUnfreezing, Trainable
from t5x_lite.models import Model, T5Config
from t5x_lite.models.finetuning_config import METHODS, Adapters, LoRA, PromptTuning


def test_the_configuration_survives_json():
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
        (
            lambda: (
                Model(dataclasses.replace(CONFIG, lora=LoRA(kernels=(".*", "nothing")))).abstract_params()
                and Model(dataclasses.replace(CONFIG, lora=LoRA(kernels=(".*", "nothing")))).logical_axes()
            ),
            "LoRA.kernels: 'nothing' matches no kernel",
        ),
        (lambda: Trainable(("(",)), "Trainable.patterns: '\\(' is no regular expression"),
        (lambda: Trainable(()), "Trainable.patterns is empty"),
        (
            lambda: make_trainer(trainable=Trainable((".*", ".*/lora_[ab]"))).shardings,
            r"Trainable.patterns: '.\*/lora_\[ab\]' matches no parameter",
        ),
        (lambda: GradualUnfreezing(0), "GradualUnfreezing.total_steps must be"),
        (lambda: GradualUnfreezing(10, episodes=0), "GradualUnfreezing.episodes must be"),
        (lambda: GradualUnfreezing(10, offset=10), "GradualUnfreezing.offset = 10 must be below total_steps = 10"),
        (
            lambda: make_trainer(trainable=Trainable(unfreezing=GradualUnfreezing(9, always=("x",)))).shardings,
            "GradualUnfreezing.always: 'x' matches no parameter",
        ),
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
    import t5x_lite.data
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
