"""The reference has all that can be set, and says of it what the code and the shipped files say."""

import inspect
import re

import pytest

from gin import config as gin_config
from t5x_lite import cli, command_line, configuration, gin_files, jobs, reference_text


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Without the tasks' configurables, which need TensorFlow."""
    path = tmp_path_factory.mktemp("reference") / "deep" / "reference.md"
    assert cli.main(["reference", f"--output={path}", "--gin.reference.task_modules=()"]) == 0
    configuration.clear()
    return path.read_text()


def rows(text, heading):
    """{first cell: the others} of the table under a heading."""
    section = re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in cells}


def test_every_configurable_and_parameter_is_there(text):
    names = reference_text.configurables()
    assert len(names) > 40
    for selector in names:
        wrapped = gin_config._REGISTRY[selector].wrapped
        if not wrapped.__module__.startswith("t5x_lite.") or wrapped.__module__.startswith("t5x_lite.tasks"):
            continue  # a test's own, or another test's import
        found = rows(text, f"### {gin_config._REGISTRY.minimal_selector(selector)}")
        parameters = inspect.signature(wrapped).parameters.values()
        assert list(found) == [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def test_what_is_said_of_a_parameter(text):
    found = rows(text, "### T5Config")
    kind, default, meaning, files = found["vocab_size"]
    assert (kind, default) == ("int", "must be set") and meaning.startswith("rows of the embedding; at least the")
    assert "models/t5_1_1/mini.gin" in files and "models/t5_1_1/family.gin" in files
    assert found["num_heads"][2] == found["head_dim"][2] != ""
    assert found["remat"][1] == "`'none'`" and found["scan_layers"][:2] == ["bool", "`True`"]
    assert rows(text, "### Evaluation")["named_files"][1] == "`{}`", "of a dataclass what its factory makes"
    assert rows(text, "### SentencePieceVocabulary")["path"][1] == "must be set"


def test_every_macro_is_there_with_its_places(text):
    found = rows(text, "## Macros")
    shipped = "\n".join((gin_files.shipped_folder() / name).read_text() for name in gin_files.shipped_names())
    code = "\n".join(line.split("#")[0] for line in shipped.splitlines())
    used = set(re.findall(r"%([A-Za-z_]\w*)", code)) | set(re.findall(r"^([A-Z]\w*) *=", code, re.MULTILINE))
    assert used | configuration.MACROS.keys() == set(found) and len(used) > 20
    meaning, example, uses, files = found["BATCH_SIZE"]
    assert meaning == configuration.MACROS["BATCH_SIZE"][0] and example == "`128`"
    assert "`train.batch_size`" in uses and "files of runs/" in files


def test_every_flag_of_every_job_is_there(text):
    for job in jobs.JOBS:
        assert [flag.split("=")[0] for flag in rows(text, f"### t5x-lite {job}")] == [
            flag.split("=")[0] for flag, _ in command_line.flags_of(job)
        ]
        assert {f"--{flag}" for flag in jobs.JOBS[job].short_forms} <= {
            f.split("=")[0] for f, _ in command_line.flags_of(job)
        }


def test_meanings_of_a_docstring():
    said = reference_text.meanings(
        "First: line.\n\nArgs:\n  one, two: of both,\n    on two lines.\n  three: a: b.\n\nReturns:\n  four: no.\n\n"
        "Attributes:\n  five: yes."
    )
    assert said == {"one": "of both, on two lines.", "two": "of both, on two lines.", "three": "a: b.", "five": "yes."}


def test_many_files_of_a_folder_are_counted():
    many = [f"study/T{i}.gin" for i in range(9)]
    assert reference_text.places([*many, "a/b/c.gin", "d.gin"]) == "9 files of study/, a/b/c.gin, d.gin"


def test_without_a_file_it_goes_to_stdout(text, capsys):
    assert cli.main(["reference", "--gin.reference.task_modules=()"]) == 0
    assert capsys.readouterr().out == text
