"""The configuration of a model from the shapes of its parameters, for formats that do not write it down."""

from collections.abc import Mapping

from t5x_lite.errors import UserError
from t5x_lite.interop.weights import Tensor
from t5x_lite.models import T5Config


def config_of(params: Mapping[str, Tensor], what: str) -> T5Config:
    """The encoder-decoder whose parameters, by our paths with layers apart, have these shapes.

    What shapes do not tell is taken as in the published models: a gated feed-forward block has the tanh-GELU (T5 1.1),
    a plain one ReLU (T5 1.0), and positions share the last bucket from 128 on.

    Raises:
      UserError: a parameter that every T5 has is missing.
    """

    def shape(*paths: str) -> tuple[int, ...]:
        for path in paths:
            if path in params:
                return params[path].shape
        raise UserError(
            f"{what} has no {' or '.join(paths)}, so it is no T5 whose sizes could be told; the first "
            f"tensors are {', '.join(sorted(params)[:3]) or 'none'}"
        )

    vocab_size, emb_dim = shape("token_embedder/embedding")
    own = "encoder/layers_0/relpos_bias/rel_embedding"
    num_heads, buckets = shape("encoder/relpos_bias/rel_embedding", own)
    joined = shape("encoder/layers_0/attention/query/kernel")[-1]
    mlp_dim = shape("encoder/layers_0/mlp/wi/kernel", "encoder/layers_0/mlp/wi_0/kernel")[-1]
    values = {
        "vocab_size": vocab_size,
        "emb_dim": emb_dim,
        "num_heads": num_heads,
        "head_dim": joined // num_heads,
        "mlp_dim": mlp_dim,
        "num_encoder_layers": _depth(params, "encoder"),
        "num_decoder_layers": _depth(params, "decoder"),
        "mlp_activations": ("relu",) if "encoder/layers_0/mlp/wi/kernel" in params else ("gelu", "linear"),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in params,
        "relpos_buckets": buckets,
        "relpos_per_layer": own in params,
    }
    return T5Config.from_dict(values)


def _depth(params: Mapping[str, Tensor], stack: str) -> int:
    prefix = f"{stack}/layers_"
    return len({path.removeprefix(prefix).split("/")[0] for path in params if path.startswith(prefix)})
