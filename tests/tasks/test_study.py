"""Every row of the study against rows.csv, by the objects that its gin file makes; and rows that run."""

import copy
import functools
import math

import jax
import numpy as np
import pytest
import seqio
import tensorflow as tf

import gin
from t5x_lite import checkpoints, cli, configuration, plots
from t5x_lite.jobs import study
from t5x_lite.models import Model
from t5x_lite.study import rows, scores
from t5x_lite.tasks import averages, preprocessors, truncated

pytestmark = pytest.mark.slow  # whole runs and pipelines: minutes

ROWS = scores.published()
# file of gin/models -> architecture, shared stacks, encoder layers, decoder layers, width, feed-forward width, heads
MODELS = {
    "t5_1_0/small": ("encoder_decoder", False, 6, 6, 512, 2048, 8),
    "t5_1_0/base": ("encoder_decoder", False, 12, 12, 768, 3072, 12),
    "t5_1_0/large": ("encoder_decoder", False, 24, 24, 1024, 4096, 16),
    "t5_1_0/3b": ("encoder_decoder", False, 24, 24, 1024, 16384, 32),
    "t5_1_0/11b": ("encoder_decoder", False, 24, 24, 1024, 65536, 128),
    "study/shared": ("encoder_decoder", True, 12, 12, 768, 3072, 12),
    "study/six_layers": ("encoder_decoder", False, 6, 6, 768, 3072, 12),
    "study/causal_lm": ("causal_lm", False, 0, 12, 768, 3072, 12),
    "study/prefix_lm": ("prefix_lm", False, 0, 12, 768, 3072, 12),
    "study/2x": ("encoder_decoder", False, 16, 16, 1024, 4096, 16),
    "study/4x": ("encoder_decoder", False, 32, 32, 1024, 4096, 16),
}
TRANSLATION = ("wmt_t2t_ende_v003", "wmt15_enfr_v003", "wmt16_enro_v003")
SEVEN = (
    "glue_v002_proportional",
    "super_glue_v102_proportional",
    "cnn_dailymail_v002",
    "squad_v010_allanswers",
    *TRANSLATION,
)


class Made:
    """What `train` would be given in one stage of a row."""

    def __init__(self, recipe, stage, **bindings):
        given = {"MODEL_DIR": "x", "MIXTURE_OR_TASK_NAME": "any", **bindings}
        if stage == "pretrain" and "MIXTURE_OR_TASK_NAME" not in bindings:
            del given["MIXTURE_OR_TASK_NAME"]
        flags = [configuration.Binding(name, repr(value), f"--gin.{name}") for name, value in given.items()]
        configuration.parse(recipe.files(stage), flags, root="t5x_lite.train")

    def __getattr__(self, name):
        # The copy of a reference is what it stands for: the object that train is called with.
        return copy.deepcopy(gin.query_parameter(f"train.{name}"))


@functools.cache
def load(name):
    return study.load(name)


@functools.cache
def parameters(config):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(Model(config).abstract_params()))


def rate(made, step):
    return float(made.optimizer.schedule(step))


@pytest.mark.parametrize(
    "line", [line for line in ROWS.values() if line["strategy"] != "scratch"], ids=lambda line: line["row"]
)
def test_pretraining_is_the_papers(line):
    recipe = load(line["row"])
    made = Made(recipe, "pretrain")
    config, data = made.model, made.data
    assert parameters(config) == int(line["parameters"])
    assert (
        config.architecture,
        config.shared_stacks,
        config.num_encoder_layers,
        config.num_decoder_layers,
        config.emb_dim,
        config.mlp_dim,
        config.num_heads,
    ) == MODELS[line["model"]]
    assert config.mlp_activations == ("relu",) and config.logits_via_embedding and config.vocab_size == 32128
    assert config.dropout_rate == 0.1 and config.adapters is None
    lengths = {"targets": int(line["targets"]), **({"inputs": int(line["inputs"])} if line["inputs"] else {})}
    assert dict(data.feature_lengths) == lengths
    assert made.train_steps == int(line["pretrain_steps"]) and made.batch_size == int(line["pretrain_batch"])
    assert [rate(made, step) for step in (0, 10_000, 40_000, 500_000)] == pytest.approx(
        [0.01, 0.01, 0.005, 500_000**-0.5]
    )
    assert made.save_every == made.evaluate_every == int(line["checkpoint_every"])
    assert data.packing and not data.loss_on_targets_only
    assert made.loss.z_loss == 1e-4 and made.loss.label_smoothing == 0
    assert made.trainable.patterns == (".*",) and made.trainable.unfreezing is None
    if line["unique_tokens"]:
        assert data.mixture_or_task_name == line["pretrain_task"] + "_truncated"
        assert truncated.truncation() == (int(line["unique_tokens"]), None)
    elif line["pretrain_task"] != "leave_one_out":
        assert data.mixture_or_task_name == line["pretrain_task"]
    if line["mixing"]:
        check_mixing(line, recipe.row)
    # Multi-task training has no finetuning: its tasks are scored while it runs.
    assert made.evaluation.decode == (line["strategy"] == "none")


def check_mixing(line, row):
    """Rates of the mixture itself, which the gin file's limit and temperature reach."""
    if line["mixing"] == "equal":
        mixture = seqio.get_mixture_or_task("all_equal")
        assert {mixture.get_rate(task) for task in mixture.tasks} == {1.0}
        return
    values = dict(part.split("=") for part in line["mixing"].split())
    limit, temperature = float(values["K"]), float(values.get("T", 1))
    names = [line["pretrain_task"]] if line["pretrain_task"] != "leave_one_out" else list(row.leave_one_out.values())
    for name in names:
        mixture = seqio.get_mixture_or_task(name)
        of = {task.name: task for task in mixture.tasks}
        twice = {"glue_rte_v002", "super_glue_rte_v102"} <= set(of)  # the same examples
        sizes = {"glue_mnli_v002": 392702, "glue_rte_v002": 2490 / (1 + twice), "super_glue_record_v102": 138854}
        for task, examples in sizes.items():
            if task in of:
                assert mixture.get_rate(of[task]) == pytest.approx(min(examples, limit) ** (1 / temperature))
        if name == "all_mix":
            assert mixture.get_rate(of["c4_v020_unsupervised"]) == float(values["U"])


@pytest.mark.parametrize(
    "line", [line for line in ROWS.values() if line["strategy"] != "none"], ids=lambda line: line["row"]
)
def test_finetuning_is_the_papers(line):
    recipe = load(line["row"])
    row, strategy = recipe.row, line["strategy"]
    by_task = strategy == "task by task"
    if by_task:
        assert len(row.finetune) == 8 + 8 + 5 and set(SEVEN[2:]) < set(row.finetune)
    else:
        assert tuple(row.finetune) == SEVEN
    one, several = (line["finetune_batch"].split("|") * 2)[:2]
    # Every task of the baseline and of the final models; what has the baseline's tasks needs one look at its settings.
    same = line["row"] != "T1-base" and row.finetune == load("T1-base").row.finetune
    for task, bindings in list(row.finetune.items())[: 1 if same else None]:
        made = Made(recipe, "finetune", MIXTURE_OR_TASK_NAME=task, **bindings)
        assert made.data.mixture_or_task_name == made.evaluation.mixture_or_task_name == task
        assert made.data.feature_lengths["inputs"] == 512
        benchmark = "glue" in task or "wsc" in task
        assert made.batch_size == int(one if benchmark else several)
        decoder = made.evaluation.decoder
        beam = line["decode"] == "beam" and task in ("cnn_dailymail_v002", *TRANSLATION)
        assert decoder.method == ("beam" if beam else "greedy") and decoder.max_length == 128
        assert not beam or (decoder.num_beams, decoder.length_penalty) == (4, 0.6)
        seen = made.data.feature_lengths["targets"]
        assert seen == (97 if "squad" in task else 84 if task.startswith("glue") else 62 if benchmark else 512)
    assert made.train_steps == int(line["finetune_steps"])
    assert made.save_every == made.evaluate_every == int(line["checkpoint_every"])
    assert rate(made, 0) == rate(made, 200_000) == pytest.approx(0.001)
    assert made.evaluation.split == "validation" and made.evaluation.num_examples is None and made.evaluation.decode
    config = made.model
    assert config.dropout_rate == 0.1
    assert config.adapters is None or strategy == f"adapters {config.adapters.inner_dim}"
    assert (config.adapters is not None) == strategy.startswith("adapters")
    unfreezing = made.trainable.unfreezing
    assert (unfreezing is not None) == (strategy == "gradual unfreezing")
    assert unfreezing is None or (unfreezing.episodes, unfreezing.total_steps) == (12, 262144)
    ensemble = strategy.startswith("ensemble")
    models = 10 if line["row"] in ("T1-base", "T1-std") else 4 if ensemble else 1
    assert (row.models, row.ensemble) == (models, ensemble)
    assert row.pretrained_models == (1 if strategy == "ensemble of 4 finetuned" else models)


def test_multi_task_training_has_no_finetuning():
    for line in ROWS.values():
        row = load(line["row"]).row
        assert row.finetunes == (line["strategy"] != "none")
        assert row.pretrains == (line["strategy"] != "scratch")


def test_the_scores_are_the_averages_of_the_papers_benchmarks():
    made = study.columns()
    for column, benchmark in (("GLUE", averages.GLUE), ("SuperGLUE", averages.SUPER_GLUE)):
        assert made.parts(column) == [tuple("/".join(pair) for pair in pairs) for pairs in benchmark.values()]


# Objectives ----------------------------------------------------------------------------------------------------------

FIRST_SENTINEL = 20_000  # all of the text's ids are below; sentinels, and ids that overflow takes, are above


class Vocabulary(seqio.PassThroughVocabulary):
    """As many ids and sentinels as T5's."""

    extra_ids = 100


@functools.cache
def corrupted(objective, inputs, targets):
    """Examples that a row's `unsupervised` makes of a synthetic text: [(inputs, targets)], without EOS."""
    random = np.random.default_rng(0)
    texts = [random.integers(100, FIRST_SENTINEL, 700) for _ in range(128)]
    vocabulary = Vocabulary(32000, eos_id=1)
    features = {name: seqio.Feature(vocabulary, add_eos=True) for name in ("inputs", "targets")}
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"targets": text} for text in texts), output_signature={"targets": tf.TensorSpec([None], tf.int32)}
    )
    lengths = {"targets": targets, **({"inputs": inputs} if inputs else {})}
    with seqio.map_seed_manager(1):
        made = preprocessors.unsupervised(dataset, output_features=features, sequence_length=lengths)
    return [(e.get("inputs"), e["targets"]) for e in made.as_numpy_iterator()]


def is_text(tokens):
    return tokens[tokens < FIRST_SENTINEL]


OBJECTIVES = {line["objective"]: line for line in reversed(ROWS.values()) if line["objective"]}


# Of the kinds that differ most; the others are slow.
FAST = ("lm", "all_permute", "iid_15_r10s90_f", "iid_50_u_u", "span_3_15_u_u")


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, id=name, marks=() if name in FAST else pytest.mark.slow) for name, line in OBJECTIVES.items()],
)
def test_objectives_corrupt_as_the_table_says(line):
    """Density, span length, cut and room of the examples that the row's gin file makes."""
    Made(load(line["row"]), "pretrain")
    inputs, targets = int(line["inputs"] or 0), int(line["targets"])
    examples = corrupted(line["objective"], inputs, targets)
    whole = int(line["split_tokens"])
    full = [(i, t) for i, t in examples if len(is_text(t)) + (0 if i is None else len(is_text(i))) >= whole]
    assert len(full) > 20
    assert all(i is None or len(i) + 1 <= inputs for i, _ in full)
    assert np.mean([len(t) + 1 for _, t in full]) <= targets  # corrupted one by one, some are longer, and cut
    density, kind = float(line["noise_density"] or 0), line["objective"]
    if kind == "lm":
        assert all(i is None and len(t) == whole for i, t in full)
    elif kind == "prefix_lm":
        assert {len(i) + len(t) for i, t in full} == {whole}
        assert np.mean([len(t) / whole for _, t in full]) == pytest.approx(density, abs=0.08)
    elif kind == "all_permute":
        assert all(len(t) == whole and sorted(i) == sorted(t) and (i != t).mean() > 0.9 for i, t in full)
    elif kind.endswith("_f"):
        assert all(len(i) == len(t) == whole for i, t in full)
        changed = np.concatenate([i[i != t] for i, t in full])
        assert len(changed) / (whole * len(full)) == pytest.approx(density, abs=0.01)
        masks = (changed == 32099).mean()
        assert masks == 1 if kind == "iid_15_m_f" else masks == pytest.approx(0.9, abs=0.03)
    else:
        assert {len(is_text(i)) + len(is_text(t)) for i, t in full} == {whole}
        noise = np.mean([len(is_text(t)) / whole for _, t in full])
        assert noise == pytest.approx(density, abs=0.015)
        spans = np.mean([len(i) - len(is_text(i)) for i, _ in full])
        if kind == "iid_15_d_d":
            assert spans == 0 and all(len(is_text(t)) == len(t) for _, t in full)
        elif line["mean_span"]:
            assert noise * whole / spans == pytest.approx(float(line["mean_span"]), rel=0.05)
        else:
            assert noise * whole / spans == pytest.approx(1 / (1 - density), rel=0.1)


# Runs ----------------------------------------------------------------------------------------------------------------

# Smaller than the scale `mini`, whose other numbers stay: two steps are to be seen, not learning.
TINY = {
    "T5Config.emb_dim": 32,
    "T5Config.mlp_dim": 32,
    "T5Config.head_dim": 8,
    "PRETRAIN_STEPS": 2,
    "FINETUNE_STEPS": 2,
    "PRETRAIN_BATCH_SIZE": 8,
    "FINETUNE_BATCH_SIZE": 8,
    "CHECKPOINT_EVERY": 2,
    "EVALUATION_EXAMPLES": 4,
    "SeqioSource.block_records": 16,
    "train.log_every": 1,
    "Decoder.max_length": 4,
}


@pytest.fixture(scope="module", autouse=True)
def no_compilation_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5X_LITE_COMPILATION_CACHE", "off")
        yield


def run_row(name, top, only=None):
    """A row at tiny size on the small corpus, or those of its runs whose folders end so; returns the folders."""
    recipe = study.load(name, "mini", "pydocs", TINY)
    done = []
    for run in rows.plan(recipe.row):
        if only is None or run.folder.endswith(only):
            study.execute(recipe, run, top, study.columns().all_parts)
            done.append(top / run.folder)
    return done


def test_a_dry_run_writes_what_would_run(tmp_path, capsys):
    flags = ["study", "--row=T10-ad32", "--scale=mini", "--corpus=pydocs", f"--runs={tmp_path}", "--dry_run"]
    assert cli.main([*flags, "--gin.study.overrides={'LEARNING_RATE': 0.5}"]) == 0
    top = tmp_path / "T10-ad32" / "seed0"
    files = [top / name / "run.gin" for name in ("pretrain", "pydocs_library", "pydocs_summarize")]
    assert capsys.readouterr().out.split("\n")[:3] == [f"t5x-lite train --gin_file={file}" for file in files]
    assert not list(top.rglob("config.gin"))
    configuration.parse([str(files[1])], root="t5x_lite.train")
    made = Made.__new__(Made)
    assert made.model.adapters.inner_dim == 2 and made.model.num_encoder_layers == 2
    assert made.initial_checkpoint_path == str(top / "pretrain") and made.model_dir == str(top / "pydocs_library")
    assert made.train_steps == 400 and made.batch_size == 16 and rate(made, 0) == 0.5
    configuration.parse([str(files[0])], root="t5x_lite.train")
    assert made.model.adapters is None and made.data.mixture_or_task_name == "pydocs_unsupervised"
    for other, message in (
        ("LEARNING_RATE", "is of other settings than asked for now"),
        ("LERNING_RATE", "T10-ad32 has no use for LERNING_RATE (did you mean LEARNING_RATE"),
    ):
        assert cli.main([*flags, f"--gin.study.overrides={{'{other}': 0.25}}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, only",
    [
        ("T9-23", "pretrain"),  # a text repeated
        pytest.param("T2-lm-l", "pretrain", marks=pytest.mark.slow),  # no inputs
        pytest.param("T11-K16", "pretrain", marks=pytest.mark.slow),  # several tasks, scored while they train
    ],
)
def test_rows_run(corpus_dir, tmp_path, name, only):
    (folder,) = run_row(name, tmp_path, only)
    metrics = plots.read_metrics(folder)
    assert list(metrics["train/loss"][0]) == [1, 2] and np.isfinite(metrics["train/loss"][1]).all()
    assert checkpoints.steps(folder) == [2]
    found = scores.find(tmp_path, study.columns())
    assert [one.row for one in found] == ([name] if name == "T11-K16" else [])  # pretraining alone has no scores
    if name == "T11-K16":
        assert set(found[0].values) == {("pydocs_library/accuracy",), ("pydocs_summarize/rougeL",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_from_pretraining_to_scores(corpus_dir, tmp_path, name, capsys):
    folders = run_row(name, tmp_path)
    line = ROWS[name]
    for folder in folders:
        metrics = plots.read_metrics(folder)
        if "ensemble" not in folder.parts:
            assert list(metrics["train/loss"][0]) == [1, 2] and np.isfinite(metrics["train/loss"][1]).all()
    found = scores.find(tmp_path, study.columns())
    values = {
        column: scores.column_values(found, name, line["combine"] == "ensemble", study.columns(), column)
        for column in ("library", "summary")
    }
    models = 1 if line["combine"] == "ensemble" else load(name).row.models
    assert {len(v) for v in values.values()} == {models}
    assert name in str(scores.table(line["table"], study.columns(), tmp_path))
    capsys.readouterr()
    run_row(name, tmp_path)
    assert capsys.readouterr().out.count("(done)") == len(folders)
