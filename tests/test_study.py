"""The study's plans, scores and reports, without data: what rows run, what counts, what is printed."""

import json

import pytest
from etils import epath

from t5x_lite import cli, configuration, gin_files, models  # noqa: F401  (models registers T5Config)
from t5x_lite.errors import UserError
from t5x_lite.study import experiments, report, rows, scaling, scores

TASKS = {"one": {"BATCH_SIZE": 8}, "two": {}}
COLUMNS = scores.Columns(
    metrics={"GLUE": ("a/acc", ("b/f1", "b/acc")), "mine": ("one/loss",)}, published=("GLUE", "CNN/DM")
)


def row(**changes):
    return rows.StudyRow(
        **{
            "name": "T6-25",
            "pretrain_task": "text",
            "pretrain_steps": 3,
            "finetune": TASKS,
            "finetune_steps": 2,
            **changes,
        }
    )


def planned(**changes):
    return {
        run.folder.removeprefix("T6-25/"): (
            run.stage,
            run.bindings["MIXTURE_OR_TASK_NAME"],
            [p.removeprefix("T6-25/") for p in run.parents],
        )
        for run in rows.plan(row(**changes))
    }


def write_run(folder, row, metrics, job="train", seed=0, stage="finetune"):
    """What a finished run leaves: its recorded configuration and {metric: {step: value}}."""
    folder.mkdir(parents=True)
    lines = [
        f"{gin_files.RECORDED_HEADER}: Run it again: t5x-lite {job} --gin_file=THIS_FILE",
        f"# from {gin_files.PREFIX}study/{row}.gin",
        f"# from {gin_files.PREFIX}study/stages/{stage}.gin",
        "",
        f"RANDOM_SEED = {seed}",
    ]
    (folder / "config.gin").write_text("\n".join(lines) + "\n")
    entries = [
        {"step": step, "name": name, "value": value, "time": 0.0}
        for name, values in metrics.items()
        for step, value in values.items()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


# Rows ----------------------------------------------------------------------------------------------------------------


def test_a_row_pretrains_once_and_finetunes_on_each_task():
    assert planned() == {
        "seed0/pretrain": ("pretrain", "text", []),
        "seed0/one": ("finetune", "one", ["seed0/pretrain"]),
        "seed0/two": ("finetune", "two", ["seed0/pretrain"]),
    }
    (_, one, two) = rows.plan(row())
    assert one.bindings["BATCH_SIZE"] == 8 and "BATCH_SIZE" not in two.bindings


def test_from_scratch_and_without_finetuning():
    assert planned(pretrain_task=None) == {"seed0/one": ("finetune", "one", []), "seed0/two": ("finetune", "two", [])}
    assert planned(finetune_steps=0) == {"seed0/pretrain": ("pretrain", "text", [])}


def test_an_ensemble_is_of_models_pretrained_apart_or_of_one():
    apart = planned(models=2, pretrained_models=2, ensemble=True, finetune={"one": {}})
    assert apart["seed1/one"] == ("finetune", "one", ["seed1/pretrain"])
    assert apart["ensemble/one"] == ("ensemble", "one", ["seed0/one", "seed1/one"])
    together = planned(models=2, ensemble=True, finetune={"one": {}})
    assert together["seed1/one"] == ("finetune", "one", ["seed0/pretrain"]) and "seed1/pretrain" not in together
    seeds = [run.bindings.get("RANDOM_SEED") for run in rows.plan(row(models=2, finetune={"one": {}}))]
    assert seeds == [0, 0, 1], "one model, pretrained with the first seed"


def test_leaving_one_out_pretrains_for_each_task():
    found = planned(leave_one_out={"one": "but one", "two": "but two"})
    assert found["seed0/pretrain-two"] == ("pretrain", "but two", [])
    assert found["seed0/two"] == ("finetune", "two", ["seed0/pretrain-two"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": 4, "pretrained_models": 3}, "must be 1 or StudyRow.models = 4, not 3"),
        ({"pretrain_task": None, "finetune_steps": 0}, "nothing to run"),
        ({"leave_one_out": {"one": "x"}}, "for each of one, two"),
    ],
)
def test_rows_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        row(**changes)


def test_a_corpus_takes_the_place_of_every_task():
    corpus = scaling.Corpus({"text": "other text"}, {"three": {}}, {"three": "but three"})
    moved = scaling.on_corpus(row(leave_one_out={"one": "but one", "two": "but two"}), corpus)
    assert (moved.pretrain_task, dict(moved.finetune), moved.leave_one_out) == (
        "other text",
        {"three": {}},
        {"three": "but three"},
    )
    with pytest.raises(UserError, match="nothing in the place of books"):
        scaling.on_corpus(row(pretrain_task="books"), corpus)


def test_a_scale_divides_what_the_row_has():
    configuration.parse([], ["T5Config.num_encoder_layers=0", "T5Config.num_decoder_layers=6"])
    scale = scaling.Scale(
        {"T5Config.num_encoder_layers": 6, "T5Config.num_decoder_layers": 4, "T5Config.emb_dim": 2},
        {"T5Config.mlp_dim": 7},
    )
    assert scaling.scaled(scale) == {"T5Config.mlp_dim": 7, "T5Config.num_decoder_layers": 2}, "0 stays, unset stays"


# Scores --------------------------------------------------------------------------------------------------------------


def test_of_each_part_the_best_checkpoint_counts(tmp_path):
    write_run(
        tmp_path / "run",
        "T6-25",
        {
            "eval/a/acc": {1: 50.0, 2: 60.0},
            "eval/b/f1": {1: 90.0, 2: 10.0},
            "eval/b/acc": {1: 70.0, 2: 30.0},
            "eval/one/loss": {1: 3.0, 2: 2.0},
        },
    )
    (found,) = scores.find(tmp_path, COLUMNS)
    assert found.values == {("a/acc",): 60.0, ("b/f1", "b/acc"): 80.0, ("one/loss",): 2.0}
    assert scores.column_values([found], "T6-25", False, COLUMNS, "GLUE") == [70.0]
    assert scores.best_step(tmp_path / "run", COLUMNS.all_parts) == 1, "one checkpoint: the best mean"
    with pytest.raises(UserError, match="none of the metrics"):
        scores.best_step(tmp_path / "run", [("c/acc",)])


def test_runs_of_a_seed_make_one_score_and_other_runs_none(tmp_path):
    write_run(tmp_path / "0" / "a", "T6-25", {"eval/a/acc": {1: 50.0}})
    write_run(tmp_path / "0" / "b", "T6-25", {"eval/b/f1": {1: 60.0}, "eval/b/acc": {1: 80.0}})
    write_run(tmp_path / "1" / "a", "T6-25", {"eval/a/acc": {1: 99.0}}, seed=1)
    write_run(tmp_path / "pretrain", "T6-25", {"eval/a/acc": {1: 1.0}}, seed=2, stage="pretrain")
    write_run(tmp_path / "eval", "T6-25", {"eval/a/acc": {1: 2.0}}, seed=3, job="eval")
    write_run(tmp_path / "own", "my_row", {"eval/a/acc": {1: 3.0}})
    found = scores.find(tmp_path, COLUMNS)
    assert scores.column_values(found, "T6-25", False, COLUMNS, "GLUE") == [60.0], "seed 1 has no b"
    assert {(one.row, one.seed, one.job) for one in found} == {
        ("T6-25", 0, "train"),
        ("T6-25", 1, "train"),
        ("T6-25", 3, "eval"),
    }


def test_the_table_has_what_was_published_and_what_was_found(tmp_path):
    for seed, score in enumerate((80.0, 84.0)):
        write_run(
            tmp_path / f"base{seed}",
            "T1-base",
            {"eval/a/acc": {1: score}, "eval/b/f1": {1: score}, "eval/b/acc": {1: score}},
            seed=seed,
        )
    write_run(tmp_path / "row", "T6-10", {"eval/one/loss": {1: 2.5}})
    write_run(tmp_path / "member", "T13-ens", {"eval/one/loss": {1: 9.0}})
    write_run(tmp_path / "ensemble", "T13-ens", {"eval/one/loss": {1: 1.5}}, job="eval")
    lines = str(scores.table("6", COLUMNS, tmp_path)).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["row", "by", "GLUE", "CNN/DM", "mine"],
        ["-----", "---", "---------", "------------", "------", "----"],
        ["T6-10", "10%", "published", "82.82", "19.00"],
        ["1", "run", "2.50"],
        # The baseline once more: its runs are those of table 1.
        ["T6-15", "15%", "published", "83.28", "19.24"],
        ["2", "runs", "82.00", "±", "2.83"],
        ["T6-25", "25%", "published", "83.00", "19.54"],
        ["T6-50", "50%", "published", "81.27", "19.32"],
    ]
    ensembles = str(scores.table("Table 13", COLUMNS, tmp_path))
    assert "1.50" in ensembles and "9.00" not in ensembles
    assert "2.828" in str(scores.table("1", COLUMNS, tmp_path)), "the row of standard deviations"


def test_every_row_is_published_once_and_has_its_file():
    names = [name for name in gin_files.shipped_names() if name.startswith("study/T")]
    assert len(names) == 77 and {f"study/{row}.gin" for row in scores.published()} == set(names)
    assert {line["table"] for line in scores.published().values()} == set("1 2 4 5 6 7 8 9 10 11 12 13 14 15".split())


# Experiments ---------------------------------------------------------------------------------------------------------


def experiment(**changes):
    return experiments.Experiment(
        **{
            "title": "Two rows",
            "rows": {"with": "T7-3", "without": "T1-none"},
            "seeds": 2,
            "metrics": {"accuracy": "one/acc"},
            **changes,
        }
    )


def write_tests(top, name, values):
    for seed, value in enumerate(values):
        folder = top / name.format(seed=seed)
        write_run(folder, "T7-3", {"test/one/acc": {5: value}, "eval/one/acc": {5: 99.0}})


def test_an_experiments_runs_end_with_a_test_of_the_best_checkpoint():
    made = experiments.runs(experiment(finetune={"one": {}}, vary="x.y", values=(1, 2)), row(models=5, ensemble=True))
    assert [(run.folder, run.stage) for run in made if run.bindings["RANDOM_SEED"] == 1] == [
        ("T6-25/seed1/pretrain", "pretrain"),
        ("T6-25/seed1/one-1", "finetune"),
        ("T6-25/seed1/one-1", "test"),
        ("T6-25/seed1/one-2", "finetune"),
        ("T6-25/seed1/one-2", "test"),
    ]
    assert made[-1].bindings["x.y"] == 2 and made[-1].bindings["MIXTURE_OR_TASK_NAME"] == "one"
    assert made[-1].parents == ("T6-25/seed1/one-2",)


def test_the_report_has_means_deviations_seeds_and_a_picture(tmp_path):
    write_tests(tmp_path, "T7-3/seed{seed}/one", (60.0, 64.0))
    write_tests(tmp_path, "T1-none/seed{seed}/one", (50.0,))
    top = epath.Path(tmp_path)
    cells = experiments.collect(experiment(), top)
    assert [(cell.label, cell.scores) for cell in cells] == [
        ("with", {"accuracy": [60.0, 64.0]}),
        ("without", {"accuracy": [50.0]}),
    ]
    report.write(experiment(), cells, top)
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.startswith("# Two rows\n\n|") and "62.00 ± 2.83" in text and "99" not in text
    assert (tmp_path / "RESULTS.png").read_bytes().startswith(b"\x89PNG")


def test_cells_of_what_varies_are_told_apart(tmp_path):
    varied = experiment(rows={"with": "T7-3"}, vary="x.y", values=(1, 11), vary_label="texts")
    for value in (1, 11):
        write_tests(tmp_path, f"T7-3/seed{{seed}}/one-{value}", (value, value + 2.0))
    top = epath.Path(tmp_path)
    cells = experiments.collect(varied, top)
    assert [(cell.value, cell.scores["accuracy"]) for cell in cells] == [(1, [1.0, 3.0]), (11, [11.0, 13.0])]
    report.write(varied, cells, top)
    assert "texts" in (tmp_path / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    "changes, message",
    [({"rows": {"x": "T7-33"}}, "T7-3"), ({"seeds": 0}, "at least 1"), ({"vary": "x.y"}, "go together")],
)
def test_experiments_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        experiment(**changes)


# The command line ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "study takes one of --table=6, --row=T6-25"),
        (["--table=6", "--row=T6-25"], "not table and row"),
        (["--table=3"], "there are 1, 2, 4, 5"),
        (["--row=T6-26"], "did you mean T6-25"),
        (["--row=T1-none", "--scale=mni"], "did you mean mini?"),
        (["--row=T1-none", "--corpus=pidocs"], "did you mean pydocs?"),
        (["--tabel=6"], "did you mean --table?"),
    ],
)
def test_a_mistake_is_one_line(capsys, flags, message):
    configuration.clear()
    assert cli.main(["study", *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("t5x-lite: error:")]
    assert message in line


def test_a_table_is_a_command(tmp_path, capsys):
    configuration.clear()
    write_run(tmp_path / "run", "T6-25", {"eval/pydocs_library/accuracy": {1: 12.5}})
    assert cli.main(["study", "--table=6", f"--runs={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "81.27" in out and "library" in out and "12.50" in out
