"""Whatever happens to the files of a checkpoint: it is read as it was saved, or not at all."""

import json
import shutil

import jax
import numpy as np
import pytest
from fuzzing import cases, check
from hypothesis import strategies as st
from saved_states import is_step, restore, save_run
from tiny_models import differing

from t5x_lite import checkpoints
from t5x_lite.errors import UserError
from t5x_lite.stored import Unreadable

ODD = [None, 0, -1, 10**6, 1.5, True, "x", "", [], {}, [[]], {"a": 1}, [None, "x"]]
NAMES = ["junk", "3", "0", "a.txt", "d", "tmp", "commit_success.txt", "1.orbax-checkpoint-tmp", "manifest.ocdbt"]


def harms():
    """Lists of (kind, which file, where in it, what)."""
    kinds = [
        "flip",
        "flip",
        "truncate",
        "empty",
        "remove",
        "append",
        "overwrite",
        "swap",
        "folder",
        "extra file",
        "extra folder",
        "remove folder",
        "json",
        "json",
        "json",
        "json name",
    ]
    one = st.tuples(st.sampled_from(kinds), st.integers(0, 999), st.floats(0, 1, exclude_max=True), st.integers(0, 999))
    return st.lists(one, min_size=1, max_size=3)


def do(harm, folder):
    """Harms one file or folder of a checkpoint."""
    kind, which, where, what = harm
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    if kind.startswith("json"):
        files = [path for path in files if path.read_bytes()[:1] == b"{"]
    if not files or not folders:
        return
    path, place = files[which % len(files)], folders[which % len(folders)]
    raw = path.read_bytes()
    at = int(where * len(raw))
    if kind == "flip" and raw:
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << what % 8]) + raw[at + 1 :])
    elif kind == "truncate":
        path.write_bytes(raw[:at])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "remove":
        path.unlink()
    elif kind == "append":
        path.write_bytes(raw + bytes(range(what % 256)))
    elif kind == "overwrite":
        path.write_bytes(raw[:at] + b"\xff" * (what % 9) + raw[at + what % 9 :])
    elif kind == "swap":
        other = files[what % len(files)]
        theirs = other.read_bytes()
        other.write_bytes(raw)
        path.write_bytes(theirs)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "extra file" and not (place / NAMES[what % len(NAMES)]).exists():
        (place / NAMES[what % len(NAMES)]).write_bytes(b"junk")
    elif kind == "extra folder":
        (place / NAMES[what % len(NAMES)]).mkdir(exist_ok=True)
    elif kind == "remove folder":
        shutil.rmtree(place)
    elif kind.startswith("json"):
        _odd_json(path, int(where * 1000), what, kind == "json name")


def _odd_json(path, which, what, name):
    """Another value, or another name, somewhere in a JSON file."""
    try:
        tree = json.loads(path.read_bytes())
    except ValueError:
        return  # harmed before
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if isinstance(tree, (dict, list)):
        walk(tree)
    if places:
        node, key = places[which % len(places)]
        if name and isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        elif what % 3:
            node[key] = ODD[what % len(ODD)]
        else:
            del node[key]
    path.write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


def sealed(checkpoint):
    """Whether the description still has the digest by which changes to it are known."""
    try:
        return "digest" in json.loads((checkpoint / "meta" / "metadata").read_bytes())
    except (OSError, ValueError, TypeError):
        return True


@cases(few=20, many=300)
def test_a_run_goes_on_from_what_was_saved(n, whole, tmp_path, capsys):
    outcomes = {"unharmed": 0, "older": 0}

    def goes_on(harms):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        for harm in harms:
            do(harm, run / "checkpoints" / "2")
        restored, warnings = restore(run)
        step = int(restored.state.step)
        assert step in (1, 2) and len(warnings) == (step == 1), (harms, warnings)
        if step == 2 and not sealed(run / "checkpoints" / "2"):
            return
        assert is_step(restored, step), harms
        assert step == 2 or (run / "checkpoints" / "damaged-2").exists()
        outcomes["unharmed" if step == 2 else "older"] += 1

    check(n, harms(), goes_on)
    capsys.readouterr()
    print(outcomes)
    assert all(outcomes.values())


@cases(few=20, many=300)
def test_inference_has_the_right_parameters_or_none(n, tiny, checkpoint, tmp_path, capsys):
    outcomes = {"unharmed": 0, "refused": 0}
    params = tiny[1]

    def answers(harms):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(checkpoint, run)
        for harm in harms:
            do(harm, run / "checkpoints" / "3")
        try:
            model, found, meta = checkpoints.load_for_inference(run)
            checkpoints.read_vocabulary(run)
        except UserError as e:
            assert str(e) and "\n" not in str(e) and not isinstance(e, Unreadable), (harms, e)
            outcomes["refused"] += 1
            return
        assert not differing(jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, params)), harms
        outcomes["unharmed"] += 1

    check(n, harms(), answers)
    capsys.readouterr()
    print(outcomes)
    assert all(outcomes.values())
