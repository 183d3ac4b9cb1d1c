"""A run as a model card: Markdown with the front matter that model hubs read."""

import ast
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import t5x_lite
from t5x_lite.interop.weights import Weights
from t5x_lite.monitor import Table, short_number
from t5x_lite.report.runs import Run

SAMPLES = 3  # predictions shown
LONGEST = 300  # characters of one of them


def make(run: Run, meta: Mapping[str, Any], weights: Weights, *, name: str, license: str) -> str:
    """The text of README.md.

    Args:
      meta: of the checkpoint that is published.
      weights: what is published of it.
    """
    metrics = metrics_at(run, weights.step)
    parts = [
        _front_matter(name, license, metrics, run.bindings),
        f"# {name}",
        f"A T5 (encoder-decoder, text to text) of {_size(weights):,} parameters, trained with T5X-lite.",
        _use(name, weights.vocabulary is not None),
        f"## Training\n\n{_training(run, meta, weights).markdown()}",
        f"## Evaluation\n\n{_evaluation(metrics)}",
        _predictions(run),
        f"## Model\n\n{_model(weights).markdown()}",
        run.config
        and "`config.gin` has every value that the run used; `t5x-lite train --gin_file=config.gin` runs it again.",
        f"## License\n\n{license}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def metrics_at(run: Run, step: int) -> dict[str, tuple[int, float]]:
    """{metric of an evaluation: (step, value)}: at the checkpoint's step or, failing that, the last one before it."""
    found = {}
    for name in sorted(run.evaluated()):
        steps, values = run.metrics[name]
        known = [i for i, at in enumerate(steps) if at <= step and math.isfinite(values[i])]
        if known:
            found[name] = int(steps[known[-1]]), float(values[known[-1]])
    return found


def tokens_seen(run: Run, step: int) -> float | None:
    """Real tokens, of inputs and targets, of the steps up to `step`; None where the run's metrics do not tell.

    Metrics have the rates of windows of steps; of steps outside of any (the first of each start) the mean is taken.
    """
    if not {"train/tokens_per_second", "train/steps_per_second"} <= run.metrics.keys():
        return None
    rates = [dict(zip(*(a.tolist() for a in run.metrics[f"train/{name}_per_second"]))) for name in ("tokens", "steps")]
    tokens = steps = before = 0.0
    for at in sorted(rates[0].keys() & rates[1].keys()):
        if at <= step and rates[1][at] > 0:
            tokens += rates[0][at] / rates[1][at] * (at - before)
            steps += at - before
            before = at
    return tokens / steps * step if steps else None


def _front_matter(
    name: str, license: str, metrics: Mapping[str, tuple[int, float]], bindings: Mapping[str, str]
) -> str:
    """YAML; texts are written as JSON has them, which YAML reads."""
    lines = [f"license: {license}", "library_name: transformers", "pipeline_tag: text2text-generation"]
    lines += ["tags:", "- t5", "- t5x-lite"]
    tasks: dict[str, list[str]] = {}
    for metric, (_, value) in metrics.items():
        kind, task, short = _metric_parts(metric)
        split = "test" if kind == "test" else _plain(bindings.get("Evaluation.split", "'validation'"))
        tasks.setdefault(json.dumps({"name": task, "type": task, "split": split}, ensure_ascii=False), []).append(
            json.dumps({"type": short, "value": round(value, 6)}, ensure_ascii=False)
        )
    if tasks:
        lines += ["model-index:", f"- name: {json.dumps(name, ensure_ascii=False)}", "  results:"]
        for dataset, values in tasks.items():
            lines += ["  - task: {type: text2text-generation}", f"    dataset: {dataset}", "    metrics:"]
            lines += [f"    - {value}" for value in values]
    return "\n".join(["---", *lines, "---"])


def _use(name: str, has_tokenizer: bool) -> str:
    if not has_tokenizer:
        return ""
    return f"""## Use

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSeq2SeqLM.from_pretrained("{name}")
inputs = tokenizer("a text as the model was trained on", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

or `t5x-lite infer --checkpoint={name} --input=texts.txt --output=answers.jsonl`."""


def _training(run: Run, meta: Mapping[str, Any], weights: Weights) -> Table:
    bound = {**meta.get("bindings", {}), **meta.get("meaning", {})}
    tokens = tokens_seen(run, weights.step)
    started = [text for _, text in run.journal if text.startswith("started: ")]
    skipped = run.last("train/skipped_updates")
    source = next((name.partition(".")[0] for name in meta.get("meaning", {}) if "Source." in name), "SeqioSource")
    rows: dict[str, Any] = {
        "data": _first(bound, f"{source}.mixture_or_task_name", f"{source}.pattern", f"{source}.paths"),
        "split": _first(bound, f"{source}.split"),
        "tokens of a row": ", ".join(f"{n} {length}" for n, length in meta.get("feature_lengths", {}).items()),
        "several examples in a row": _first(bound, f"{source}.packing"),
        "steps": f"{weights.step:,}",
        "rows of a batch": _first(bound, "BATCH_SIZE", "train.batch_size"),
        "tokens seen": None if tokens is None else f"about {short_number(tokens)}, padding left out",
        "started from": _first(bound, "train.initial_checkpoint_path"),
        "optimizer": _first(bound, "train.optimizer"),
        "computed in": weights.config.dtype,
        "seed": _first(bound, "RANDOM_SEED", "train.seed"),
        "hardware": started[-1].partition(", ")[2] if started else None,
        "time": _time(run),
        "updates left out": None if not skipped else f"{skipped:,.0f}",
        "published by": f"T5X-lite {t5x_lite.__version__}",
    }
    table = Table(["", "of the run"])
    for name, value in rows.items():
        if value not in (None, "", "None"):
            table.add(name, str(value))
    return table


def _time(run: Run) -> str | None:
    if not run.journal:
        return None
    starts = sum(text.startswith("started: ") for _, text in run.journal)
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.journal[i][0])) for i in (0, -1))
    return f"{first} to {last} UTC, started {starts} time(s)"


def _evaluation(metrics: Mapping[str, tuple[int, float]]) -> str:
    if not metrics:
        return "The run's folder has no evaluation of this checkpoint or an earlier one."
    table = Table(["task", "metric", "value", "at step"])
    for metric, (step, value) in metrics.items():
        _, task, short = _metric_parts(metric)
        table.add(task, short, value, step)
    return table.markdown()


def _metric_parts(metric: str) -> tuple[str, str, str]:
    """`eval/TASK/METRIC`, whose middle may have slashes of its own."""
    kind, _, rest = metric.partition("/")
    task, _, short = rest.rpartition("/")
    return kind, task or rest, short


def _predictions(run: Run) -> str:
    if not run.samples:
        return ""
    table = Table(["task", "input", "target", "prediction"])
    for sample in run.samples[:SAMPLES]:
        texts = (str(sample.get(key, "")) for key in ("task", "inputs", "targets", "prediction"))
        table.add(*(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts))
    return f"## Predictions\n\nThe first of the run's last evaluation.\n\n{table.markdown()}"


def _model(weights: Weights) -> Table:
    config, names = weights.config, ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "mlp_activations")
    table = Table(["", "of the model"])
    table.add("layers", f"{config.num_encoder_layers} of the encoder, {config.num_decoder_layers} of the decoder")
    for name in (*names, "logits_via_embedding", "relpos_per_layer", "param_dtype"):
        table.add(f"`{name}`", str(getattr(config, name)))
    return table


def _size(weights: Weights) -> int:
    return sum(math.prod(tensor.shape) for tensor in weights.params.values())


def _first(bound: Mapping[str, str], *names: str) -> str | None:
    """The value of the first of the bindings that there is."""
    return next((_plain(bound[name]) for name in names if name in bound), None)


def _plain(text: str) -> Any:
    """A text without its quotes; other values as gin writes them."""
    if re.fullmatch(r"""(['"]).*\1""", text, re.DOTALL):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    return text
