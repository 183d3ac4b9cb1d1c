"""Whatever stands on a command line or in a gin file: it runs, or one line says what is wrong."""

import contextlib
import io

import numpy as np
import pytest
from fuzzing import cases, check
from hypothesis import strategies as st

import gin
from t5x_lite import cli, configuration, jobs

MODEL = dict(emb_dim=16, mlp_dim=16, head_dim=8, num_heads=2, vocab_size=64, num_encoder_layers=1, num_decoder_layers=1)
# Command lines that are right; all stop before anything is trained or written.
RIGHT = {
    "train": [
        "--dry_run",
        "--gin_file=models/t5_1_1/mini.gin",
        "--gin_file=runs/train_npz.gin",
        "--gin.BATCH_SIZE=8",
        "--gin.NPZ_PATTERN=rows.npz",
        "--model_dir=run",
        "--gin.MESH={'data': 2, 'fsdp': 4}",
        *(f"--gin.T5Config.{name}={value}" for name, value in MODEL.items()),
    ],
    "eval": ["--dry_run", "--gin_file=runs/eval.gin", "--gin.MIXTURE_OR_TASK_NAME=tsv:rows.tsv", "--model_dir=absent"],
    "infer": ["--dry_run", "--checkpoint=absent", "--input=in.txt", "--output=out.jsonl"],
    "convert": ["--dry_run", "--from=absent", "--to=new"],
    "plan": ["--hardware=abacus:8", "--gin_file=models/t5_1_1/mini.gin", "--gin_file=runs/pretrain.gin"],
    "study": ["--dry_run", "--table=6", "--runs=absent"],
    "release": ["--dry_run", "--model_dir=absent", "--to=new", "--license=mit"],
}
VALUES = [
    "0",
    "-1",
    "1",
    "3",
    "1000000",
    "1e400",
    "-0.5",
    "0.1",
    "True",
    "False",
    "None",
    "''",
    '""',
    "'abc'",
    "abc",
    "[1, 2]",
    "(1,)",
    "[]",
    "{}",
    "{'data': 1}",
    "{1: 2}",
    "{'inputs': 'x'}",
    "[[], {}]",
    "@Loss()",
    "@Mesh",
    "@Mesh()",
    "@T5Config",
    "@absent()",
    "%BATCH_SIZE",
    "%absent",
    "%gin.REQUIRED",
    "1,2",
    "0x10",
    "1_000",
    "b'x'",
    "...",
    "-",
    "--",
    "=",
    "'",
    '"',
    "\\",
    "\n",
    "\t",
    "é",
    "\udc80",
    "#",
    "[",
    ")",
    "{'a'",
    "@",
    "%",
    "@a/b/Loss()",
    "@train()",
    "9" * 60,
    "[" * 300,
    "gs:/",
    "nan",
    "inf",
    "true",
    "lambda: 1",
    "1 2",
    "'a' 'b'",
    "/",
    ".",
    "..",
    "~",
    "absent",
    "rows.npz",
    "*",
]
FILES = [
    "",
    ".",
    "absent.gin",
    "models",
    "runs/infer.gin",
    "models/t5_1_1/small.gin",
    "finetuning/lora.gin",
    "runs/tarin.gin",
    "mine.gin",
    "./mine.gin",
    "rows.npz",
    "../mine.gin",
    "t5x_lite/gin/runs/train.gin",
    "/",
    "\n",
    "mesh/cpu8.gin",
    "studz/T6-25.gin",
    "study/T6-25.gin",
]


def names():
    """Every binding that a gin file could have, and every macro."""
    with contextlib.suppress(Exception):
        for module in [*(job.module for job in jobs.JOBS.values()), *jobs.MODULES]:
            __import__(module)
    found = [
        f"{configuration._short(selector)}.{parameter}"
        for selector, configurable in gin.config._REGISTRY.items()
        if selector.startswith("t5x_lite.")
        for parameter in configuration._parameters(configurable)
    ]
    assert len(found) > 150
    return sorted({*found, *configuration.MACROS, "WARMUP_STEPS", "NUM_STREAMS", "NPZ_PATTERN"})


def misspelt(text):
    """`text`, with a few of its characters left out, doubled, or replaced."""
    edits = st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from(["", "__", ".", "/", " ", "=", "x", "'", "-"])),
        min_size=1,
        max_size=2,
    )

    def edit(edits):
        out = text
        for place, put in edits:
            at = place % (len(out) + 1)
            out = out[:at] + put + out[at + 1 :]
        return out

    return edits.map(edit)


@st.composite
def bindings(draw, names):
    # Those of the run itself come up as often as all others together.
    name = draw(st.one_of(st.sampled_from(names), st.sampled_from([n for n in names if n.startswith(OFTEN)])))
    if draw(st.integers(0, 5)) == 0:
        name = draw(misspelt(name))
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
    return name, draw(st.one_of(st.sampled_from(VALUES), st.sampled_from(VALUES), text))


OFTEN = (
    "T5Config.",
    "train.",
    "adafactor.",
    "Mesh.",
    "NpzSource.",
    "Health.",
    "Keep.",
    "Retry.",
    "Loss.",
    "Trainable.",
    "infer.",
    "convert.",
    "Decoder.",
    "evaluate.",
    "BATCH_SIZE",
    "MESH",
    "TRAIN_STEPS",
    "inverse_square_root.",
)


@st.composite
def command_lines(draw, names):
    """(arguments, text of mine.gin)."""
    job = draw(st.sampled_from([*RIGHT, "train", "train", "infer"]))
    arguments = list(RIGHT[job])
    if draw(st.integers(0, 2)):  # most are right but for a binding or two, or they would all end at the first check
        odd = draw(st.lists(bindings(names), min_size=1, max_size=2))
        return [job, *arguments, *(f"--gin.{name}={value}" for name, value in odd)], ""
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(arguments) - 1))
        if arguments[place] == "--dry_run" or arguments[place].startswith("--hardware"):
            continue
        action = draw(st.sampled_from(["drop", "double", "misspell", "split", "empty", "quote"]))
        flag, _, value = arguments[place].partition("=")
        arguments[place : place + 1] = {
            "drop": [],
            "double": [arguments[place]] * 2,
            "misspell": [draw(misspelt(arguments[place]))],
            "split": [flag, value],
            "empty": [flag + "="],
            "quote": [f"{flag}='{value}'"],
        }[action]
    more = draw(
        st.lists(
            st.one_of(
                bindings(names).map(lambda b: f"--gin.{b[0]}={b[1]}"),
                bindings(names).map(lambda b: f"--gin.{b[0]}={b[1]}"),
                bindings(names).map(lambda b: f"--gin.{b[0]}='{b[1]}'"),
                st.sampled_from(FILES).map(lambda name: f"--gin_file={name}"),
                st.sampled_from(
                    [
                        "--at_step=0",
                        "--show_batches=1",
                        "--show_batches=x",
                        "--allow_config_change",
                        "--gin_search_paths=,",
                        "--gin_search_paths=absent",
                        "stray",
                        "-x",
                        "--",
                        "--=",
                        "-h=1",
                        "--gin.",
                        "--gin.=1",
                    ]
                ),
                st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10).map(lambda t: f"--{t}"),
            ),
            max_size=3,
        )
    )
    lines = draw(
        st.lists(
            st.one_of(
                bindings(names).map(lambda b: f"{b[0]} = {b[1]}"),
                st.sampled_from(
                    [
                        "include 'mine.gin'",
                        "include 'absent.gin'",
                        "include 'runs/train.gin'",
                        "import absent_module",
                        "from __gin__ import dynamic_registration",
                        "# a comment",
                        "x =",
                        "= 1",
                        "  indented = 1",
                        "a/b/c = 1",
                        "T5Config.emb_dim = \\",
                        "x = '''",
                        "include",
                        "import",
                        "\ufeffX = 1",
                    ]
                ),
            ),
            max_size=3,
        )
    )
    if lines:
        more.append("--gin_file=mine.gin")
    name = draw(st.sampled_from([job] * 8 + ["tarin", "", "help", "infer "]))
    place = draw(st.sampled_from([0] * 9 + [1]))
    arguments = arguments + more
    arguments.insert(place, name)
    return arguments, "\n".join(lines)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the right command lines name, to stand in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = np.random.default_rng(0).integers(2, 64, (16, 8))
    np.savez(
        "rows.npz",
        encoder_input_tokens=rows,
        decoder_input_tokens=rows,
        decoder_target_tokens=rows,
        decoder_loss_weights=np.ones_like(rows),
    )
    (tmp_path / "in.txt").write_text("a line\n")
    return tmp_path


def run(arguments):
    """(exit code, stdout, stderr) of a command line."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    configuration.clear()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    out.flush()
    return code, out.buffer.getvalue().decode(), err.getvalue()


def test_the_right_ones_are_right(folder):
    codes = {job: run([job, *arguments])[0] for job, arguments in RIGHT.items()}
    assert codes == {"train": 0, "eval": 2, "infer": 2, "convert": 2, "plan": 2, "study": 0, "release": 2}
    assert {path.name for path in folder.iterdir()} == {"rows.npz", "in.txt"}


@cases(few=60, many=3000)
def test_a_command_line_runs_or_says_in_one_line_what_is_wrong(n, folder):
    codes = []

    def says(case):
        arguments, text = case
        (folder / "mine.gin").write_text(text, encoding="utf-8", errors="surrogateescape")
        code, out, err = run(arguments)
        assert code in (0, 2), (arguments, text, err)
        last = err.splitlines()[-1] if err else ""
        if code == 2 and "usage: t5x-lite" not in err:
            assert last.startswith("t5x-lite: error: "), (arguments, text, err)
            assert len(last) > len("t5x-lite: error: ") + 5, (arguments, text, err)
        assert "Traceback" not in err, (arguments, text, err)
        files = {path.name for path in folder.iterdir()}
        assert files == {"rows.npz", "in.txt", "mine.gin"}, (arguments, files)
        codes.append(code)

    check(n, command_lines(names()), says)
    print(f"{codes.count(0):,} of them ran, {codes.count(2):,} were refused")
    assert 0 < codes.count(0) < len(codes)
