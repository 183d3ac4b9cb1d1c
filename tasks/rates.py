"""How often a task of a mixture is drawn: functions of the task, for `seqio.MixtureRegistry.add`.

Source: Raffel et al. 2020 (https://arxiv.org/abs/1910.10683), section 3.5.2.
"""

import math

import seqio

import gin

# Training examples of the members of the two benchmarks, as T5 publishes them (ReCoRD counts each answer); 0 for what
# is evaluated alone. WNLI is left out: WSC and DPR are trained on in its place.
GLUE = {
    "glue_cola_v002": 8551,
    "glue_sst2_v002": 67349,
    "glue_mrpc_v002": 3668,
    "glue_qqp_v002": 363849,
    "glue_stsb_v002": 5749,
    "glue_mnli_v002": 392702,
    "glue_qnli_v002": 104743,
    "glue_rte_v002": 2490,
    "glue_mnli_mismatched_v002": 0,
    "glue_mnli_matched_v002": 0,
    "glue_ax_v002": 0,
}
SUPER_GLUE = {
    "dpr_v001_simple": 1322,
    "super_glue_wsc_v102_simple_train": 259,
    "super_glue_wsc_v102_simple_eval": 0,
    "super_glue_boolq_v102": 9427,
    "super_glue_cb_v102": 250,
    "super_glue_copa_v102": 400,
    "super_glue_multirc_v102": 27243,
    "super_glue_record_v102": 138854,
    "super_glue_rte_v102": 2490,
    "super_glue_wic_v102": 5428,
    "super_glue_axb_v102": 0,
    "super_glue_axg_v102": 0,
}
_PUBLISHED = GLUE | SUPER_GLUE


@gin.configurable(module="t5x_lite")
def rate_num_examples(
    task: seqio.Task,
    maximum: float | None = None,
    temperature: float = 1.0,
    scale: float = 1.0,
    fallback_to_num_input_examples: bool = True,
    constant_benchmarks: bool = False,
    copies: int = 1,
) -> float:
    """Examples-proportional mixing: min(e·scale, K)^(1/T) for a task of e training examples.

    Of GLUE and SuperGLUE e is the published number, so that those need no data to be looked up.

    Args:
      maximum: the limit K; None for none.
      temperature: T.
      fallback_to_num_input_examples: count the data set's records where the task is not cached.
      constant_benchmarks: keep the members of GLUE and SuperGLUE at e whatever K and T are, as the original's mixtures
        do; the paper's formula makes no such difference.
      copies: tasks of the mixture that have the same examples (RTE is in both benchmarks): each gets its part of e.
    """
    published = _PUBLISHED.get(task.name)
    if published is not None and constant_benchmarks:
        return published / copies
    if published is None:
        published = seqio.mixing_rate_num_examples(task, fallback_to_num_input_examples=fallback_to_num_input_examples)
    return min(published / copies * scale, math.inf if maximum is None else maximum) ** (1 / temperature)


@gin.configurable(module="t5x_lite")
def rate_unsupervised(task: seqio.Task, value: float = 1e6) -> float:
    """The number of examples that unlabelled text counts for beside the supervised tasks of `all_mix` and `en_mix`."""
    del task
    return value
