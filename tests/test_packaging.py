"""What an installer gets: the wheel's content, what runs from it, and the pins."""

import configparser
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = {"t5x_lite": "t5x_lite", "tasks": "t5x_lite/tasks", "gin": "t5x_lite/gin"}  # in the checkout, in the wheel
HEAVY = ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "torch", "transformers")
# The doors to TensorFlow. Everything else must work, and start quickly, where it is not installed.
NEEDS_TENSORFLOW = {
    f"t5x_lite.seqio_{part}" for part in ("blocks", "cache", "evaluation", "names", "packing", "sources", "stages")
}
NEEDS_BEAM = {f"t5x_lite.corpus.{part}" for part in ("pipeline", "shuffle")}


def run(*arguments, cwd, check=True, **environment):
    """Run Python on `arguments` in `cwd`, with nothing of this process's import path; return the finished process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env={**env, **environment}, capture_output=True, text=True, timeout=300
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build(source, out, copy=shutil.copy2):
    """Build a wheel from a copy of the checkout by the installed setuptools: nothing is fetched."""
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored, copy_function=copy)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source / name)
    code = "import setuptools.build_meta as b, sys; b.build_wheel(sys.argv[1])"
    run("-c", code, str(out), cwd=source, SOURCE_DATE_EPOCH="1700000000")
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(build(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The wheel's content in a folder, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("unpacked")
    wheel.extractall(folder)
    return folder


def run_unpacked(unpacked, tmp_path, code):
    """Run `code` in an empty folder against the unpacked wheel; return the JSON that it prints.

    Without `site` (-S) no .pth file is read, so that an editable installation of this checkout cannot help out.
    """
    path = os.pathsep.join([str(unpacked), *_libraries()])
    return json.loads(run("-S", "-P", "-c", code, cwd=tmp_path, PYTHONPATH=path).stdout)


def _libraries():
    return {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def modules_of_the_core():
    """The importable modules of t5x_lite/ but for the doors to TensorFlow and Beam."""
    files = sorted((ROOT / "t5x_lite").rglob("*.py"))
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]
    return [name for name in names if name not in NEEDS_TENSORFLOW | NEEDS_BEAM and not name.endswith("__main__")]


def test_wheel_holds_the_whole_tree(wheel):
    files = {
        f"{inside}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        # What came out of the study is there to be read.
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".md", ".png")
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files


def test_wheel_puts_one_name_at_the_top(wheel):
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"t5x_lite"}


def test_wheel_has_its_license_and_no_file_twice(wheel):
    names = wheel.namelist()
    (license_file,) = [name for name in names if name.endswith("/LICENSE")]
    assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()
    assert len(names) == len(set(names))


def test_the_same_code_and_date_make_the_same_wheel(wheel, tmp_path):
    """From another folder, with files of another time."""

    def copy(source, target):
        shutil.copyfile(source, target)
        os.utime(target, (1_000_000_000, 1_000_000_000))

    (tmp_path / "out").mkdir()
    again = build(tmp_path / "a source of another length", tmp_path / "out", copy)
    with open(wheel.filename, "rb") as file:
        assert again.read_bytes() == file.read() and again.name == os.path.basename(wheel.filename)
    with zipfile.ZipFile(again) as archive:
        assert {info.date_time[:3] for info in archive.infolist()} == {(2023, 11, 14)}


def test_wheel_finds_its_gin_files_and_tasks(unpacked, tmp_path):
    found = run_unpacked(
        unpacked,
        tmp_path,
        "import importlib.resources, importlib.util, json, sys\n"
        "from t5x_lite import gin_files\n"
        "size = importlib.resources.files('t5x_lite') / 'gin' / 'models' / 't5_1_1' / 'small.gin'\n"
        "print(json.dumps({'resource': size.is_file(), 'folder': str(gin_files.shipped_folder()),\n"
        "    'names': gin_files.shipped_names(), 'tasks': importlib.util.find_spec('t5x_lite.tasks').origin,\n"
        "    'bare': importlib.util.find_spec('tasks') is None, 'gin': sys.modules['gin'].__file__}))",
    )
    assert found["resource"] and found["bare"]
    assert pathlib.Path(found["folder"]) == unpacked / "t5x_lite" / "gin"
    assert found["names"] == sorted(p.relative_to(ROOT / "gin").as_posix() for p in (ROOT / "gin").rglob("*.gin"))
    assert pathlib.Path(found["tasks"]) == unpacked / "t5x_lite" / "tasks" / "__init__.py"
    assert unpacked not in pathlib.Path(found["gin"]).parents


def test_wheel_has_the_command(unpacked, tmp_path):
    found = run_unpacked(
        unpacked,
        tmp_path,
        "import importlib.metadata as m, json\n"
        "d = m.distribution('t5x-lite')\n"
        "(command,) = d.entry_points.select(group='console_scripts')\n"
        "main = command.load()\n"
        "print(json.dumps([command.name, main.__module__, callable(main), main.__code__.co_filename, d.version]))",
    )
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    file = str(unpacked / "t5x_lite" / "cli.py")
    assert found == ["t5x-lite", "t5x_lite.cli", True, file, config["metadata"]["version"]]


def test_core_imports_without_tensorflow(tmp_path):
    code = (
        "import importlib, sys\n"
        "names, heavy = (a.split() for a in sys.argv[1:])\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "    loaded = [h for h in heavy if h in sys.modules]\n"
        "    assert not loaded, f'{name} imports {loaded}'\n"
    )
    names = modules_of_the_core()
    assert {"t5x_lite.trainer", "t5x_lite.data", "t5x_lite.models", "t5x_lite.jobs.train"} <= set(names)
    run("-P", "-c", code, " ".join(names), " ".join(HEAVY), cwd=tmp_path)


def test_the_version_is_read_when_it_is_asked_for(tmp_path):
    code = (
        "import sys, t5x_lite\n"
        "before = 'importlib.metadata' in sys.modules\n"
        "print(before, t5x_lite.__version__, hasattr(t5x_lite, 'no_such_thing'))"
    )
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = run("-S", "-P", "-c", code, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(ROOT), *_libraries()]))
    assert found.stdout.split() == ["False", config["metadata"]["version"], "False"]


def test_hooks_run_the_pinned_tools_and_fetch_nothing():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert tools == {f".venv/bin/{wanted.name}" for extra, wanted in requirements() if extra == "lint"}
    assert all(f'"$venv/bin/{pathlib.Path(tool).name}"' in (ROOT / ".ci" / "run").read_text() for tool in tools)


def test_bare_names_in_a_checkout():
    """From the root, `tasks` is refused before it registers anything, and `gin` is the library."""
    refused = run("-c", "import tasks", cwd=ROOT, check=False)
    assert refused.returncode != 0 and "import it as `t5x_lite.tasks`" in refused.stderr, refused.stderr
    library = run("-c", "import gin; print(gin.__file__)", cwd=ROOT).stdout.strip()
    assert ROOT / "gin" not in pathlib.Path(library).parents and library.endswith("__init__.py")


@pytest.mark.slow  # imports TensorFlow in a process of its own
def test_wheel_reads_ones_own_data_in_an_empty_folder(unpacked, tmp_path):
    lines = [f"question {i}\\tanswer {i}\\n" for i in range(40)]
    found = run_unpacked(
        unpacked,
        tmp_path,
        "import contextlib, io, json, pathlib\n"
        "from t5x_lite import cli\n"
        f"pathlib.Path('own.tsv').write_text('{''.join(lines)}')\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    code = cli.main(['train', '--gin_file=examples/own_data.gin', '--gin.MIXTURE_OR_TASK_NAME=tsv:own.tsv',\n"
        "        '--gin.TextFiles.index_folder=None', '--model_dir=run', '--gin.BATCH_SIZE=8', '--dry_run',\n"
        "        '--show_batches=1'])\n"
        "print(json.dumps([code, out.getvalue()]))",
    )
    assert found[0] == 0 and "from     own.tsv:" in found[1] and "'answer " in found[1], found


def requirements():
    """Every requirement in setup.cfg on another package, the extras' and the build's included: (extra, Requirement)."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    found = [(extra, Requirement(line)) for extra, text in lists.items() for line in text.split("\n") if line.strip()]
    return [(extra, wanted) for extra, wanted in found if wanted.name != config["metadata"]["name"]]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_constraints_pin_each_requirement_once(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)  # an option, such as an index, is not a requirement
        assert not pin.url and [s.operator for s in pin.specifier] == ["=="], line
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            (pins[name],) = (s.version for s in pin.specifier)
    for extra, wanted in requirements():
        version = pins.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted} [{extra}] is not in constraints.txt: run the command in its first lines"
        assert wanted.specifier.contains(version, prereleases=True), f"{wanted} [{extra}], but {version} is pinned"
