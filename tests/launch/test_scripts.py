"""What each script and manifest says of itself, and what shellcheck and the checkout say of them."""

import configparser
import itertools
import pathlib
import re
import subprocess
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SHELL = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"])
ON_HOSTS = [LAUNCH / name for name in ("Dockerfile", "gke_gpu.yaml", "gke_tpu.yaml", "slurm.sbatch", "tpu_vm.sh")]


def test_every_file_for_other_hosts_is_here():
    others = {path for path in LAUNCH.iterdir() if path.suffix in (".yaml", ".sbatch") or path.name == "Dockerfile"}
    assert others | {LAUNCH / "tpu_vm.sh"} == set(ON_HOSTS)


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    shellcheck = pathlib.Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([shellcheck, "--external-sources", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.name)
def test_each_opens_with_its_use_what_to_edit_and_what_it_costs(path):
    head = []
    for line in path.read_text().removeprefix("#!/usr/bin/env bash\n").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    text = "\n".join(head)
    assert re.search(r"^#   \w+", text, re.MULTILINE), "no command"
    assert re.search(r"^# Edit: ", text, re.MULTILINE) and re.search(r"^# Costs: ", text, re.MULTILINE)
    assert path.name in (ROOT / "README.md").read_text()


def test_the_image_is_built_from_what_an_installation_needs():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copies = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    copied = list(itertools.chain(*copies))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {line.split("=")[1].strip() for line in config["options"]["package_dir"].strip().splitlines()}
    files = {
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        config["metadata"]["license_files"],
        config["metadata"]["long_description"].split()[1],
    }
    assert {name.removeprefix("./") for name in copied} == folders | files
    default = next(line.split("=")[1] for line in lines if line.startswith("ARG EXTRAS="))
    assert default in config["options.extras_require"]
