"""A bound value of another kind than its parameter takes is one line, whoever bound it."""

import importlib
import inspect

import pytest

import gin
from t5x_lite import configuration, jobs, value_types
from t5x_lite.errors import UserError
from t5x_lite.models import T5Config

TRAIN = ["models/t5_1_1/mini.gin", "runs/train_npz.gin"], ["MODEL_DIR='a'", "NPZ_PATTERN='b'"]


@pytest.fixture(scope="module", autouse=True)
def configurables():
    for module in [*(job.module for job in jobs.JOBS.values()), *jobs.MODULES]:
        importlib.import_module(module)


@pytest.mark.parametrize(
    "binding, says",
    [
        ("BATCH_SIZE='many'", "--gin.BATCH_SIZE = 'many': train.batch_size takes a whole number"),
        ("BATCH_SIZE=8.5", "train.batch_size takes a whole number"),
        ("train.log_every=True", "--gin.train.log_every = True: takes a whole number"),
        ("T5Config.dropout_rate='0'", "takes a number"),
        ("Keep.last=[3]", "takes a whole number or None"),
        ("MESH=[1, 2]", "Mesh.shape takes a dictionary such as {'a': 1}"),
        ("MESH={'data': '1'}", "Mesh.shape takes a dictionary"),
        ("Trainable.patterns='.*'", "takes a list such as ['a']"),
        ("train.loss=@Mesh()", "takes a Loss, @name() or None"),
        ("train.loss=@Loss", "takes a Loss, @name() or None"),
        ("train.seed=@Loss()", "takes a whole number"),
        ("train.model='t5'", "takes a T5Config, @name()"),
        ("adafactor.learning_rate=1e-3", "takes a function, @name"),
        ("train.allow_config_change=1", "takes True or False"),
        ("NpzSource.vocabulary='a'", "takes a SentencePieceVocabulary, @name() or a ByteVocabulary, @name() or None"),
    ],
)
def test_values_of_another_kind_are_refused(binding, says):
    files, bindings = TRAIN
    with pytest.raises(UserError) as e:
        configuration.parse(files, [*bindings, binding], root="t5x_lite.train")
    assert says in str(e.value)


@pytest.mark.parametrize(
    "binding",
    [
        "BATCH_SIZE=8",
        "T5Config.dropout_rate=0",
        "Keep.last=None",
        "MESH={'data': -1}",
        "Trainable.patterns=['.*']",
        "Trainable.patterns=('.*',)",
        "train.loss=None",
        "train.loss=@Loss()",
        "T5Config.lora=@LoRA()",
        "T5Config.emb_dim=%WARMUP_STEPS",
        "NpzSource.vocabulary=@ByteVocabulary()",
        "NPZ_PATTERN='1'",
    ],
)
def test_values_of_the_right_kind_are_not(binding):
    files, bindings = TRAIN
    configuration.parse(files, [*bindings, binding], root="t5x_lite.train")


def test_every_default_is_of_the_kind_that_its_parameter_says():
    """Or a recorded configuration, which has all of them, could not be run again."""
    wrong = []
    for selector, configurable in gin.config._REGISTRY.items():
        if selector.startswith("t5x_lite."):
            for p in inspect.signature(configurable.wrapped).parameters.values():
                known = p.default not in (inspect.Parameter.empty, gin.REQUIRED) and repr(p.default) != "<factory>"
                if known and not value_types.fits(p.default, p.annotation):
                    wrong.append((selector, p.name, p.default))
    assert not wrong


def test_annotations_that_cannot_be_judged_fit():
    for annotation in ("int", inspect.Parameter.empty, object()):
        assert value_types.fits("x", annotation)
    assert value_types.fits((1, "a"), tuple[int, str]) and not value_types.fits((1,), tuple[int, str])
    assert not value_types.fits(T5Config, T5Config)
