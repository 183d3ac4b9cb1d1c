"""UL2's mixture of denoisers: short and long spans, heavy corruption and prefix LM in one, told apart by a mode.

Source: Tay et al. 2022, "UL2: Unifying Language Learning Paradigms" (https://arxiv.org/abs/2205.05131), table 1. The
paper leaves the shares of the denoisers open; here every one is as likely as the others, unless told otherwise.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from t5x_lite.errors import UserError
from t5x_lite.tasks.objectives import chains, denoising, documents, fills, masks, rows
from t5x_lite.tasks.objectives.names import configurable


@configurable
@dataclasses.dataclass(frozen=True)
class Denoiser:
    """One of the mixture.

    Attributes:
      mode: text put before the inputs; empty for none.
      noise_density: share of the tokens to be restored.
      mean_span_length: tokens in a corrupted span, on average; None for the end of the segment, in one piece and
        without sentinels (prefix LM: the share is the average one, at most twice as much is taken).
      rate: how often it is drawn, relative to the others.
    """

    mode: str
    noise_density: float
    mean_span_length: float | None
    rate: float = 1.0


DENOISERS = (
    Denoiser("[NLU]", 0.15, 3.0),  # R: regular
    Denoiser("[NLU]", 0.15, 8.0),
    Denoiser("[NLG]", 0.5, 3.0),  # X: extreme
    Denoiser("[NLG]", 0.5, 8.0),
    Denoiser("[NLG]", 0.15, 64.0),
    Denoiser("[NLG]", 0.5, 64.0),
    Denoiser("[S2S]", 0.25, None),  # S: sequential
)


@configurable
def ul2(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    denoisers: Sequence[Denoiser] = DENOISERS,
) -> tf.data.Dataset:
    """Tokenized documents in `targets` -> `inputs` with the mode in front, and `targets`; EOS not yet added.

    Documents are joined by 128. The denoiser of each segment is drawn by the rates, and the segment is as long as that
    denoiser needs to fill the inputs.

    Raises:
      UserError: no denoisers, or `targets` too short for one of them.
    """
    if not denoisers:
        raise UserError("ul2.denoisers is empty: name at least one, or leave it out for the paper's seven")
    vocabulary = output_features["targets"].vocabulary
    encoded = [vocabulary.encode(d.mode) if d.mode else [] for d in denoisers]
    modes = tf.ragged.constant(encoded, tf.int32, ragged_rank=1)
    lengths = tf.constant(
        [_tokens(d, len(mode), sequence_length, output_features) for d, mode in zip(denoisers, encoded, strict=True)]
    )
    rates = tf.math.log([[d.rate for d in denoisers]])
    density = tf.constant([d.noise_density for d in denoisers])
    span = tf.constant([d.mean_span_length or 1.0 for d in denoisers])
    prefix = tf.constant([d.mean_span_length is None for d in denoisers])

    @seqio.map_over_dataset(num_seeds=4)
    @rows.as_written
    def corrupt(batch, seeds):
        # 1. Segments, each as long as the denoiser wants that was drawn for it.
        text = batch["targets"].values
        most = -(-tf.size(text) // tf.reduce_min(lengths))
        drawn = tf.random.stateless_categorical(rates, most, seeds[0], tf.int32)[0]
        ends = tf.cumsum(tf.gather(lengths, drawn))
        begins = ends - tf.gather(lengths, drawn)
        drawn = tf.boolean_mask(drawn, begins < tf.size(text))
        sizes = tf.boolean_mask(tf.minimum(ends, tf.size(text)) - begins, begins < tf.size(text))
        tokens = rows.from_lengths(text, sizes)

        # 2. Spans in some, ends in the others, whose share of *text* the prefix mask is of.
        is_prefix = tf.gather(prefix, drawn)
        spans = masks.random_spans_noise_mask(sizes, tf.gather(density, drawn), seeds[1:3], tf.gather(span, drawn))
        kept = masks.random_prefix_noise_mask(sizes, tf.minimum(tf.gather(density, drawn), 0.5), seeds[3:])
        in_prefix = rows.of(tokens, is_prefix)
        noise = tokens.with_values(tf.where(in_prefix, tf.logical_not(kept.values), spans.values))

        # 3. Both sides; those of a prefix without their one sentinel.
        sides = {
            "inputs": fills.noise_span_to_unique_sentinel(tokens, noise, vocabulary, ()),
            "targets": fills.nonnoise_span_to_unique_sentinel(tokens, noise, vocabulary, ()),
        }
        first = fills.sentinel_id(vocabulary)
        sides = {
            k: rows.keep(v, tf.logical_not(tf.logical_and(v.values == first, rows.of(v, is_prefix))))
            for k, v in sides.items()
        }
        return sides | {"inputs": tf.concat([tf.gather(modes, drawn), sides["inputs"]], axis=1)}

    return rows.apart(corrupt(documents.pieces(dataset)))


def _tokens(denoiser: Denoiser, mode_length: int, sequence_length, output_features) -> int:
    """The length of a segment for this denoiser; UserError where its targets do not fit."""
    room = documents.length_without_eos("inputs", sequence_length, output_features) - mode_length
    if denoiser.mean_span_length is None:
        tokens = room
        targets = tokens - max(1, round((1 - 2 * denoiser.noise_density) * (tokens - 1))) + 1
    else:
        tokens, targets = chains.random_spans_helper(room + 1, denoiser.noise_density, denoiser.mean_span_length, 1, 1)
    if sequence_length["targets"] < targets:
        raise denoising.too_short(sequence_length, "inputs", targets, f"{denoiser}")
    return tokens
