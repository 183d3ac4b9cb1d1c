"""What the mixtures hold, and how often each member is drawn."""

import pytest
import seqio
import tensorflow as tf

import gin
import t5x_lite.tasks  # noqa: F401  (registers)
from t5x_lite import configuration
from t5x_lite.tasks import rates

PUBLISHED_GLUE = {
    "cola": 8551,
    "sst2": 67349,
    "mrpc": 3668,
    "qqp": 363849,
    "stsb": 5749,
    "mnli": 392702,
    "qnli": 104743,
    "rte": 2490,
    "mnli_mismatched": 0,
    "mnli_matched": 0,
    "ax": 0,
}
FINETUNED = (
    "glue_v002_proportional",
    "super_glue_v102_proportional",
    "cnn_dailymail_v002",
    "squad_v010_allanswers",
    "wmt_t2t_ende_v003",
    "wmt15_enfr_v003",
    "wmt16_enro_v003",
)


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    configuration.clear()


@pytest.fixture
def sized(monkeypatch):
    """A way to say how many examples tensorflow-datasets has of each data set."""

    def say(**examples):
        monkeypatch.setattr(
            seqio.TfdsDataSource,
            "num_input_examples",
            lambda self, split: examples[self.tfds_dataset.name.split("/")[0].split(":")[0]],
        )

    return say


def mixture(name):
    return seqio.MixtureRegistry.get(name)


def rate_of(name, task):
    return mixture(name).get_rate(seqio.TaskRegistry.get(task))


def rates_of(name):
    return {task.name: mixture(name).get_rate(task) for task in mixture(name).tasks}


def test_benchmarks_go_by_the_published_sizes_alone():
    with gin.unlock_config():
        gin.bind_parameter("rate_num_examples.maximum", 100)
    assert rates_of("glue_v002_proportional") == {f"glue_{name}_v002": n for name, n in PUBLISHED_GLUE.items()}
    found = rates_of("super_glue_v102_proportional")
    assert len(found) == 12 and sum(found.values()) == 1322 + 259 + 9427 + 250 + 400 + 27243 + 138854 + 2490 + 5428
    sentinels = rates_of("super_glue_v102_proportional_sentinel")
    assert sentinels["super_glue_wsc_v102_simple_1_sentinel_train"] == 259
    assert {name.replace("_1_sentinel", ""): rate for name, rate in sentinels.items()} == found
    assert rates_of("wsc_dpr_simple_proportional") == {
        "dpr_v001_simple": 1322,
        "super_glue_wsc_v102_simple_train": 259,
        "super_glue_wsc_v102_simple_eval": 0,
    }
    assert rates_of("glue_mnli_and_dev_v002") == {
        f"glue_{name}_v002": 1 for name in ("mnli", "mnli_matched", "mnli_mismatched")
    }


@pytest.mark.parametrize(
    "maximum, temperature, cola, mnli, french",
    [
        (None, 1.0, 8551, 392702, 40_000_000),
        (2**16, 1.0, 8551, 65536, 65536),
        (2**19, 1.0, 8551, 392702, 524288),
        (2**21, 2.0, 8551**0.5, 392702**0.5, 2**10.5),
    ],
)
def test_limit_and_temperature_are_the_papers(sized, maximum, temperature, cola, mnli, french):
    """min(e, K)^(1/T) for every task, members of GLUE too (section 3.5.2)."""
    sized(wmt15_translate=40_000_000)
    with gin.unlock_config():
        gin.bind_parameter("rate_num_examples.maximum", maximum)
        gin.bind_parameter("rate_num_examples.temperature", temperature)
    for task, expected in (("glue_cola_v002", cola), ("glue_mnli_v002", mnli), ("wmt15_enfr_v003", french)):
        assert rate_of("all_supervised_proportional", task) == pytest.approx(expected), task
    assert rate_of("all_supervised_proportional", "glue_ax_v002") == 0


def test_the_gin_file_sets_limit_and_temperature(sized):
    sized(wmt15_translate=40_000_000)
    configuration.parse(["mixing/proportional.gin"], ["MIXING_LIMIT=1000", "MIXING_TEMPERATURE=2.0"])
    assert rate_of("large_supervised_proportional", "wmt15_enfr_v003") == pytest.approx(1000**0.5)
    configuration.check_all_read()


def test_the_originals_constant_weights_are_an_option(sized):
    sized(wmt15_translate=40_000_000)
    with gin.unlock_config():
        gin.bind_parameter("rate_num_examples.maximum", 1000)
        gin.bind_parameter("rate_num_examples.temperature", 2.0)
        gin.bind_parameter("rate_num_examples.constant_benchmarks", True)
    assert rate_of("all_supervised_proportional", "glue_mnli_v002") == 392702
    assert rate_of("all_supervised_proportional", "super_glue_rte_v102") == 1245
    assert rate_of("all_supervised_proportional", "wmt15_enfr_v003") == pytest.approx(1000**0.5)


def test_twins_share_their_examples():
    for name in ("glue_rte_v002", "super_glue_rte_v102"):
        assert rate_of("all_supervised_proportional", name) == 1245
    with gin.unlock_config():
        gin.bind_parameter("rate_num_examples.scale", 0.5)
        gin.bind_parameter("rate_num_examples.maximum", 700)
    assert rate_of("all_supervised_proportional", "glue_rte_v002") == 622.5
    assert rate_of("all_supervised_proportional", "glue_cola_v002") == 700


def test_equal_mixtures():
    assert set(rates_of("large_translation_equal").values()) == {1}
    assert set(rates_of("all_supervised_equal").values()) == {1}
    assert {t.name for t in mixture("squad_trivia_qa_equal").tasks} == {"squad_v010_allanswers", "trivia_qa_v010"}


def test_all_supervised_is_everything_that_t5_is_finetuned_on():
    members = {task.name for task in mixture("all_supervised_proportional").tasks}
    expected = set()
    for name in FINETUNED:
        provider = seqio.get_mixture_or_task(name)
        expected |= {task.name for task in getattr(provider, "tasks", [provider])}
    assert members == expected and len(members) == 28


@pytest.mark.parametrize("left_out", FINETUNED)
def test_leave_one_out(left_out):
    provider = seqio.get_mixture_or_task(left_out)
    gone = {task.name for task in getattr(provider, "tasks", [provider])}
    found = mixture(f"leave_one_out_{left_out}")
    everything = {task.name for task in mixture("all_supervised_proportional").tasks} | {"c4_v020_unsupervised"}
    assert {task.name for task in found.tasks} == everything - gone
    # RTE is shared where both benchmarks are there.
    for name in {"glue_rte_v002", "super_glue_rte_v102"} - gone:
        assert rate_of(found.name, name) == (2490 if "glue" in left_out else 1245)


def test_unlabelled_text_counts_as_told(sized):
    sized(c4=365_000_000)
    assert rate_of("all_mix", "c4_v020_unsupervised") == 1e6
    with gin.unlock_config():
        gin.bind_parameter("rate_unsupervised.value", 2620000)
        gin.bind_parameter("rate_num_examples.maximum", 2**19)
    for name in ("all_mix", "en_mix"):
        assert rate_of(name, "c4_v020_unsupervised") == 2620000
        assert rate_of(name, "glue_cola_v002") == 8551
    assert rate_of("all_proportional", "c4_v020_unsupervised") == 2**19
    assert rate_of("all_equal", "c4_v020_unsupervised") == 1


def test_a_mixture_draws_by_its_rates(sized):
    """seqio takes the functions as they are: 8,551 to 3,668, and nothing of what is evaluated alone."""
    features = {key: seqio.Feature(vocabulary=seqio.ByteVocabulary()) for key in ("inputs", "targets")}
    names = ("glue_cola_v002", "glue_mrpc_v002", "glue_ax_v002")
    tasks = []
    for name in names:
        data = tf.data.Dataset.from_tensors({"inputs": name, "targets": name}).repeat()
        source = seqio.FunctionDataSource(lambda split, shuffle_files, seed=None, data=data: data, splits=["train"])
        tasks.append(seqio.Task(name, source, features, [seqio.preprocessors.tokenize]))
    mixed = seqio.Mixture("mixed", [(task, rates.rate_num_examples) for task in tasks])
    dataset = mixed.get_dataset(None, "train", shuffle=False, seed=1, copy_pretokenized=True, num_epochs=1)
    drawn = [e["inputs_pretokenized"].decode() for e in dataset.take(2000).as_numpy_iterator()]
    assert drawn.count("glue_cola_v002") / 2000 == pytest.approx(8551 / (8551 + 3668), abs=0.03)
    assert "glue_ax_v002" not in drawn
