"""A folder with what the mistakes are made about, and the one line that a command line prints for each."""

import contextlib
import io
import json

import infer_runs
import npz_runs
import numpy as np
import pytest

from t5x_lite import cli, configuration


@pytest.fixture(scope="session")
def here(tmp_path_factory):
    """The folder that all commands run in; none of them may leave `run` behind."""
    folder = tmp_path_factory.mktemp("mistakes")
    npz_runs.write_rows(folder / "rows.npz", 32)
    infer_runs.save(folder / "model", *infer_runs.tiny_model())
    infer_runs.save(folder / "textless", *infer_runs.tiny_model()[:2], None)
    (folder / "pairs.tsv").write_text("".join(f"question {i}\tanswer {i}\n" for i in range(200)))
    (folder / "empty.tsv").write_text("")
    (folder / "binary.tsv").write_bytes(np.random.default_rng(0).bytes(20_000).replace(b"\0", b"\n"))
    (folder / "few.jsonl").write_text('{"input": "a", "target": "b"}\n{"input": "a", \n')
    (folder / "broken.jsonl").write_text('{"input": "a", \n' * 200)
    (folder / "lines.txt").write_text("the quick brown fox\n")
    (folder / "wrong.gin").write_text("BATCH_SIZE = 8\nTRAIN_STEPS 5\n")
    (folder / "short.gin").write_text("TRAIN_STEPS = 8\n")
    (folder / "long.gin").write_text("TRAIN_STEPS = 9\n")
    config = {"vocab_size": 64, "d_model": 8, "num_heads": 2, "d_kv": 4, "d_ff": 8, "num_layers": 1, "model_type": "t5"}
    for name, weights in (("without_weights", None), ("pickled", b"not a pickle"), ("not_t5", b"")):
        (folder / name).mkdir()
        said = config if name != "not_t5" else {"model_type": "llama", "vocab_size": 64}
        (folder / name / "config.json").write_text(json.dumps(said))
        if weights is not None:
            (folder / name / "pytorch_model.bin").write_bytes(weights)
    return folder


@pytest.fixture
def told(here, monkeypatch):
    """told(words of a command) -> the line that says what is wrong, without the program's name."""
    monkeypatch.chdir(here)

    def run(*argv: str) -> str:
        before = sorted(here.iterdir())
        errors = io.StringIO()
        configuration.clear()
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                code = cli.main(list(argv))
        finally:
            configuration.clear()
        start = "t5x-lite: error: "
        said = errors.getvalue()
        lines = [line for line in said.splitlines() if line.startswith(start)]
        assert code == 2 and len(lines) == 1, f"exit code {code}: {said[-2000:]}"
        assert said.endswith(f"{lines[0]}\n") and "Traceback" not in said
        assert sorted(here.iterdir()) == before, "something is left of it"
        return lines[0].removeprefix(start).replace(str(here), "HERE")

    return run
