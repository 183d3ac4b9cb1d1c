"""Configurables of the tests' own, registered once, and what it takes to bind them."""

import dataclasses
import os

import pytest

import gin
from t5x_lite import configuration
from t5x_lite.errors import UserError


@gin.configurable(module="configuration_test")
def a_schedule(peak=0.5, steps=10):
    return peak, steps


@gin.configurable(module="configuration_test")
def another_schedule(peak=0.5):
    return peak


@gin.configurable(module="configuration_test")
@dataclasses.dataclass(frozen=True)
class APart:
    width: int
    depth: int
    schedule: object = None


@gin.configurable(module="configuration_test")
def a_job(part, folder, lengths=None, fixed=1, later=None, dry_run=False):
    made = later() if later else None
    return part, folder, lengths, fixed, made


def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w", encoding="utf-8") as f:
        f.write(text)
    return name


JOB = """
a_job.part = @APart()
a_job.folder = %MODEL_DIR
APart.width = 4
APart.depth = %DEPTH
"""


def error(files=(), bindings=(), search_paths=(), root=None, run=None):
    """The message of the UserError of parsing (and then of `run` and `check_all_read`): one line, always."""

    def start():
        configuration.parse(files, bindings, search_paths, root)
        if run is not None:
            run()
            configuration.check_all_read()

    with pytest.raises(UserError) as caught:
        start()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
