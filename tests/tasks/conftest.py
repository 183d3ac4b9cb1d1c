"""A corpus of a few dozen invented documents, and a model trained on it, made once for all tests of this folder."""

import random

import pytest
from job_runs import PRETRAIN, run

_NOUNS = "array tensor gradient mesh layer kernel batch token stream record shard buffer queue matrix graph".split()
_VERBS = "returns computes copies gathers scatters reduces sorts merges filters encodes writes reads joins".split()
_ADVERBS = "slowly lazily eagerly in place once twice later exactly roughly safely".split()


def _sentence(rng: random.Random) -> str:
    words = [rng.choice(_VERBS), "the", rng.choice(_NOUNS), "of", "each", rng.choice(_NOUNS), rng.choice(_ADVERBS)]
    words += ["before", "it", rng.choice(_VERBS), "any", rng.choice(_NOUNS)]
    return " ".join(words).capitalize() + "."


def _docstring(rng: random.Random) -> str:
    body = "\n".join(f"    {_sentence(rng)}" for _ in range(5))
    return f"{_sentence(rng)}\n\n{body}\n\n    Returns:\n      {_sentence(rng)}\n    "


def write_tree(root, functions: int = 120) -> None:
    """A library of modules; every tenth text is repeated word for word, every seventh with one word more."""
    rng = random.Random(7)
    for module in range(4):
        lines = []
        for i in range(functions // 4):
            text = _docstring(rng)
            lines.append(f'def f{i}():\n    """{text}"""\n')
            if i % 10 == 0:
                lines.append(f'def copy{i}():\n    """{text}"""\n')
            if i % 7 == 0:
                lines.append(f'def near{i}():\n    """{text.rstrip()} Indeed.\n    """\n')
        path = root / "package" / f"module{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines), encoding="utf-8")
    (root / "package" / "broken.py").write_text('def f(:\n    """' + "x" * 300 + '"""\n')


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root)
    return root


@pytest.fixture(scope="session")
def tree_sources(tree):
    from t5x_lite.tasks.pydocs import corpus

    return corpus.tree_sources(tree, "invented")


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory, tree_sources):
    """A data directory with the small corpus built, made the place where the tasks look for theirs."""
    from t5x_lite.tasks.pydocs import builder

    directory = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5X_LITE_DATA_DIR", str(directory))
        builder.ensure_built(sources=tree_sources)
        yield directory


@pytest.fixture(scope="session")
def pretrained(corpus_dir, tmp_path_factory):
    """MODEL_DIR of six steps in one go, saved every third."""
    folder = tmp_path_factory.mktemp("pretrained")
    assert run("train", *PRETRAIN, f"--model_dir={folder}", "--gin.TRAIN_STEPS=6", "--gin.train.save_every=3") == 0
    return folder
