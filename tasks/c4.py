"""Unsupervised tasks on C4, mC4 and Wikipedia under their T5 names.

Nothing is read before a task is used; vocabularies and data sets are not shipped. These are prepared by
tensorflow-datasets (https://www.tensorflow.org/datasets/catalog/c4) and found under `TFDS_DATA_DIR`.

`c4_v020_unsupervised` and its like have no objective of their own: gin chooses one (`--gin_file=objectives/NAME.gin`).
"""

import functools
from collections.abc import Mapping, Sequence

import seqio

from t5x_lite.tasks import preprocessors, unsupervised
from t5x_lite.tasks.tfds_source import TfdsSource

# T5's vocabulary, in a public bucket: 32,000 pieces with the 100 sentinels already above them, hence no `extra_ids`
# below. Another one is put in its place with `task.replace(output_features=...)` or the gin binding of the run.
VOCABULARY_PATH = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"
MC4_VOCABULARY_PATH = "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model"
# T5's own names say 2.2.0; tensorflow-datasets has fixed its C4 since, and still offers the older one by name.
TFDS_VERSION = "3.*.*"
TFDS_NAME = f"c4/en:{TFDS_VERSION}"
# Codes of the data set: 101 languages, and six of them in Latin script besides.
MC4_LANGUAGES = (
    "af am ar az be bg bg-Latn bn ca ceb co cs cy da de el el-Latn en eo es et eu fa fi fil fr fy ga gd gl gu ha "
    "haw hi hi-Latn hmn ht hu hy id ig is it iw ja ja-Latn jv ka kk km kn ko ku ky la lb lo lt lv mg mi mk ml mn "
    "mr ms mt my ne nl no ny pa pl ps pt ro ru ru-Latn sd si sk sl sm sn so sq sr st su sv sw ta te tg th tr uk "
    "ur uz vi xh yi yo zh zh-Latn zu"
).split()
# mT5 draws a language of n examples as often as n^0.3 (Xue et al. 2020, https://arxiv.org/abs/2010.11934, section 3.2).
MC4_TEMPERATURE = 1 / 0.3


def vocabulary() -> seqio.SentencePieceVocabulary:
    """T5's 32,100 ids; the file is opened at first use."""
    return seqio.SentencePieceVocabulary(VOCABULARY_PATH)


def features() -> dict[str, seqio.Feature]:
    """`inputs`, which an objective may leave out, and `targets`: both with EOS, in T5's vocabulary."""
    return unsupervised.features(vocabulary())


def _tfds(name: str, splits: Sequence[str] | Mapping[str, str] = ("train", "validation")) -> TfdsSource:
    return TfdsSource(tfds_name=name, splits=splits)


_eos = seqio.preprocessors.append_eos_after_trim

for _name, _objective in (
    ("c4_v220_span_corruption", preprocessors.span_corruption),
    ("c4_v220_iid_denoising", preprocessors.iid_denoising),
    ("c4_v220_prefix_lm", preprocessors.prefix_lm),
):
    unsupervised.add_task(_name, _tfds(TFDS_NAME), features(), _objective, _eos)

# Its documents have their EOS already. No inputs: for a language model, or LM adaptation with some of prefix_lm.
unsupervised.add_task("c4_v220_full_lm", _tfds(TFDS_NAME), {"targets": features()["targets"]}, preprocessors.full_lm)

for _name, _config in (
    ("c4", "en"),
    ("c4_noclean", "en.noclean"),
    ("c4_realnewslike", "realnewslike"),
    ("c4_webtextlike", "webtextlike"),
):
    unsupervised.add_task(
        f"{_name}_v020_unsupervised",
        _tfds(f"c4/{_config}:{TFDS_VERSION}"),
        features(),
        preprocessors.unsupervised,
        _eos,
    )

unsupervised.add_task(
    "wikipedia_20190301.en_v003_unsupervised",
    _tfds("wikipedia/20190301.en:1.0.0", ("train",)),
    features(),
    preprocessors.unsupervised,
    _eos,
)

_mc4_vocabulary = seqio.SentencePieceVocabulary(MC4_VOCABULARY_PATH)
for _language in MC4_LANGUAGES:
    unsupervised.add_task(
        f"mc4.{_language.replace('-', '_')}",
        _tfds(f"c4/multilingual:{TFDS_VERSION}", {"train": _language, "validation": f"{_language}-validation"}),
        unsupervised.features(_mc4_vocabulary),
        preprocessors.span_corruption,
        _eos,
    )
seqio.MixtureRegistry.add(
    "mc4",
    [f"mc4.{_language.replace('-', '_')}" for _language in MC4_LANGUAGES],
    default_rate=functools.partial(seqio.mixing_rate_num_examples, temperature=MC4_TEMPERATURE),
)

# Rows of the model themselves, full of text: they are taken as they are, neither packed nor padded.
for _architecture, _pack in (
    ("encoder_decoder", preprocessors.pack_prefix_lm_encoder_decoder),
    ("decoder", preprocessors.pack_prefix_lm_decoder_only),
):
    _names = (
        ["encoder_input_tokens", "encoder_segment_ids", "encoder_positions", "decoder_segment_ids", "decoder_positions"]
        if _architecture == "encoder_decoder"
        else ["decoder_causal_attention"]
    )
    _names += ["decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights"]
    unsupervised.add_task(
        f"c4_prefix_lm_objective_{_architecture}_architecture",
        _tfds(TFDS_NAME),
        # `targets` is what they are made of; it is gone at the end.
        {n: seqio.Feature(vocabulary=vocabulary(), add_eos=False) for n in _names}
        | {"targets": seqio.Feature(vocabulary=vocabulary(), add_eos=True, required=False)},
        preprocessors.targets_for_prefix_lm_objective,
        _pack,
    )
