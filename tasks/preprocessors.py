"""The preprocessors of `t5.data.preprocessors` under their names: a task module written for T5 changes one import.

    from t5x_lite.tasks import preprocessors  # was: from t5.data import preprocessors

In gin files they are `preprocessors.NAME` (after `import t5x_lite.tasks.preprocessors`), as in T5's own.
"""

from seqio.preprocessors import append_eos, append_eos_after_trim, rekey, tokenize

from t5x_lite.tasks.glue_preprocessors import glue, record, stsb
from t5x_lite.tasks.objectives.chains import (
    bert_style,
    deshuffling,
    full_lm,
    iid_denoising,
    lm_segments,
    mass_style,
    pack_prefix_lm_decoder_only,
    pack_prefix_lm_encoder_decoder,
    prefix_lm,
    random_spans_helper,
    random_spans_targets_length,
    random_spans_tokens_length,
    span_corruption,
    targets_for_prefix_lm_objective,
    trim_and_pad_dataset,
)
from t5x_lite.tasks.objectives.denoising import denoise, unsupervised
from t5x_lite.tasks.objectives.documents import (
    concatenate_and_split_to_fixed_length,
    filter_by_string_length,
    reduce_concat_tokens,
    select_random_chunk,
    split_tokens,
    split_tokens_to_inputs_length,
    split_tokens_to_random_length,
    split_tokens_to_targets_length,
    trim_tokens_at_front,
)
from t5x_lite.tasks.objectives.fills import (
    bert_noise_tokens,
    drop_noise_tokens,
    drop_nonnoise_tokens,
    noise_span_after_unique_sentinel,
    noise_span_to_sentinel,
    noise_span_to_unique_sentinel,
    noise_token_to_gathered_token,
    noise_token_to_random_token,
    noise_token_to_random_token_or_sentinel,
    noise_token_to_sentinel,
    nonnoise_span_to_sentinel,
    nonnoise_span_to_unique_sentinel,
    permute_noise_tokens,
    sentinel_id,
)
from t5x_lite.tasks.objectives.masks import (
    iid_noise_mask,
    random_prefix_noise_mask,
    random_spans_noise_mask,
    regular_noise_mask,
)
from t5x_lite.tasks.objectives.text import (
    fill_in_the_blank,
    fill_in_the_blank_sized,
    lm,
    neighboring_pairs,
    next_sentence_prediction,
    pad_nonspaced_languages,
    random_split_text,
    split_text_to_words,
)
from t5x_lite.tasks.objectives.ul2 import Denoiser, ul2
from t5x_lite.tasks.pronoun_preprocessors import definite_pronoun_resolution_simple, wnli_simple, wsc, wsc_simple
from t5x_lite.tasks.question_preprocessors import (
    squad,
    squad_span_space_tokenized,
    trivia_qa,
    trivia_qa_truncate_inputs,
)
from t5x_lite.tasks.text_preprocessors import (
    multi_translate,
    parse_tsv,
    preprocess_tsv,
    rank_classification,
    rank_classification_formatter,
    summarize,
    translate,
)
