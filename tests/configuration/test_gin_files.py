"""Gin files: which is found under a name, and who wins where several bind the same."""

import os
import sys

import pytest
from configurables import APart, a_schedule, error, write

import gin
from t5x_lite import configuration, models


def test_shipped_files_are_found_from_anywhere_and_named_canonically():
    parsed = configuration.parse(["models/t5_1_1/mini.gin"])
    assert [file.name for file in parsed.files] == [
        "t5x_lite/gin/models/t5_1_1/mini.gin",
        "t5x_lite/gin/models/t5_1_1/family.gin",
    ]
    assert all(os.path.isabs(file.path) and os.path.isfile(file.path) for file in parsed.files)


def test_canonical_includes_mean_the_shipped_file_even_where_the_user_has_the_same_path(shipped):
    (shipped / "models" / "a.gin").write_text("include 't5x_lite/gin/models/b.gin'\n")
    (shipped / "models" / "b.gin").write_text("a_schedule.peak = 1.0\n")
    write("t5x_lite/gin/models/b.gin", "a_schedule.peak = 2.0\n")
    configuration.parse([write("mine.gin", "include 't5x_lite/gin/models/a.gin'\n")])
    assert a_schedule()[0] == 1.0


def test_gins_own_parser_reads_canonical_names_too():
    gin.parse_config_file("t5x_lite/gin/models/t5_1_1/mini.gin")
    assert models.T5Config().emb_dim == 128 and models.T5Config().mlp_activations == ("gelu", "linear")


def test_a_name_found_twice_with_different_content_names_both(shipped):
    (shipped / "models" / "a.gin").write_text("a_schedule.peak = 1.0\n")
    write("models/a.gin", "a_schedule.peak = 2.0\n")
    message = error(["models/a.gin"])
    assert os.path.realpath("models/a.gin") in message and str(shipped / "models" / "a.gin") in message
    configuration.parse(["./models/a.gin"])
    assert a_schedule()[0] == 2.0
    configuration.parse(["t5x_lite/gin/models/a.gin"])
    assert a_schedule()[0] == 1.0
    write("models/a.gin", "a_schedule.peak = 1.0\n")  # the same content is no question
    configuration.parse(["models/a.gin"])


def test_search_paths_and_the_folder_of_the_including_file_are_searched():
    write("far/away.gin", "include 'near.gin'\na_schedule.steps = 3\n")
    write("far/near.gin", "a_schedule.peak = 2.0\n")
    configuration.parse(["away.gin"], search_paths=["far"])
    assert a_schedule() == (2.0, 3)
    configuration.parse(["far/away.gin"])
    assert a_schedule() == (2.0, 3)
    assert "no folder 'nowhere'" in error(["away.gin"], search_paths=["nowhere"])


def test_a_missing_file_is_told_with_the_nearest_shipped_names():
    message = error(["models/t5_1_1/smal.gin"])
    assert message.startswith("--gin_file=models/t5_1_1/smal.gin: no gin file")
    assert "did you mean models/t5_1_1/small.gin" in message
    message = error([write("my.gin", "\ninclude 't5x_lite/gin/models/t5_1_1/smal.gin'\n")])
    assert message.startswith("my.gin:2: ") and "models/t5_1_1/small.gin" in message
    os.mkdir("folder.gin")
    assert "is a folder" in error(["folder.gin"])


def test_a_file_included_twice_is_read_once_and_circles_end():
    write("a.gin", "include 'b.gin'\na_schedule.peak = 1.0\n")
    write("b.gin", "include 'a.gin'\na_schedule.peak = 2.0\n")
    parsed = configuration.parse(["a.gin", "b.gin"])
    assert [file.name for file in parsed.files] == ["a.gin", "b.gin"]
    assert a_schedule()[0] == 1.0


# ----------------------------------------------------------------------------------------------------------------------
# Who wins
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_the_order_of_files_of_different_rank_does_not_matter(shipped, backwards):
    for folder in ("runs", "examples"):
        (shipped / folder).mkdir()
    (shipped / "models" / "m.gin").write_text(
        "a_schedule.peak = 0\na_schedule.steps = 0\nAPart.width = 0\nAPart.depth = 0\n"
    )
    (shipped / "runs" / "r.gin").write_text("a_schedule.peak = 1\na_schedule.steps = 1\nAPart.width = 1\n")
    (shipped / "examples" / "e.gin").write_text(
        "include 't5x_lite/gin/runs/r.gin'\na_schedule.peak = 2\na_schedule.steps = 2\n"
    )
    write("mine.gin", "a_schedule.steps = 3\n")
    files = ["models/m.gin", "examples/e.gin", "mine.gin"]
    configuration.parse(files[::-1] if backwards else files)
    assert a_schedule() == (2, 3) and APart() == APart(width=1, depth=0)
    configuration.parse(files[::-1] if backwards else files, ["a_schedule.steps=4"])
    assert a_schedule() == (2, 4)


def test_two_shipped_files_of_one_rank_that_disagree_are_an_error(shipped):
    (shipped / "models" / "family.gin").write_text("APart.width = 1\nAPart.depth = 1\n")
    (shipped / "models" / "s.gin").write_text("include 't5x_lite/gin/models/family.gin'\nAPart.width = 2\n")
    (shipped / "models" / "l.gin").write_text("include 't5x_lite/gin/models/family.gin'\nAPart.width = 3\n")
    configuration.parse(["models/s.gin"])  # a file may override what it includes
    assert APart().width == 2
    message = error(["models/s.gin", "models/l.gin"])
    assert "models/s.gin:2 and t5x_lite/gin/models/l.gin:2 both set APart.width" in message


def test_imports_run_before_names_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("late_module_of_test.py", "import gin\n@gin.configurable\ndef late_thing(x=1): return x\n")
    write("uses.gin", "late_thing.x = 5\n")
    write("imports.gin", "import late_module_of_test\n")
    configuration.parse(["uses.gin", "imports.gin"])
    assert sys.modules["late_module_of_test"].late_thing() == 5


def test_dynamic_registration_works_as_in_gin(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    write("plain_module_of_test.py", "def plain(x=1): return x\n")
    write(
        "dynamic.gin",
        "from __gin__ import dynamic_registration\nimport plain_module_of_test\nplain_module_of_test.plain.x = 7\n",
    )
    configuration.parse(["dynamic.gin"])
    assert gin.get_configurable("plain")() == 7
