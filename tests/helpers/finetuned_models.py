"""A small model with each of the finetuning methods, and a trainer of a part of it."""

import dataclasses

import jax
import numpy as np
from tiny_models import mesh

from t5x_lite import optimizers, trainer
from t5x_lite.losses import Loss
from t5x_lite.models import Model, T5Config
from t5x_lite.models.finetuning_config import IA3, Adapters, BitFit, LoRA, PromptTuning

# Every width differs from every other, so that no shape is taken for another's; eight devices divide them.
CONFIG = T5Config(
    vocab_size=256, emb_dim=32, num_heads=8, head_dim=8, mlp_dim=48, num_encoder_layers=2, num_decoder_layers=3
)
LAYERS = CONFIG.num_encoder_layers + CONFIG.num_decoder_layers
ATTENTIONS = CONFIG.num_encoder_layers + 2 * CONFIG.num_decoder_layers
D, A, F = CONFIG.emb_dim, CONFIG.num_heads * CONFIG.head_dim, CONFIG.mlp_dim

# (what is added, parameters added): each count by the method's own formula.
ADDED = {
    "adapters": ({"adapters": Adapters(16)}, LAYERS * (D + 2 * D * 16)),
    "adapters_twice": ({"adapters": Adapters(16, ("attention", "mlp"))}, (LAYERS + ATTENTIONS) * (D + 2 * D * 16)),
    "lora": ({"lora": LoRA(4)}, ATTENTIONS * 2 * 4 * (D + A)),
    "lora_mlp": ({"lora": LoRA(4, kernels=("decoder/.*/w[io](_0)?/kernel",))}, 3 * 2 * 4 * (D + F)),
    "ia3": ({"ia3": IA3()}, ATTENTIONS * 2 * A + LAYERS * F),
    "bitfit": ({"bitfit": BitFit()}, ATTENTIONS * (3 * A + D) + LAYERS * (2 * F + D)),
    "prompt": ({"prompt": PromptTuning(5)}, 5 * D),
}
EVERYTHING = dataclasses.replace(
    CONFIG,
    adapters=Adapters(16, ("attention", "mlp")),
    lora=LoRA(4),
    ia3=IA3(),
    bitfit=BitFit(),
    prompt=PromptTuning(5),
)
ADDED_PATTERNS = (".*_adapter/.*", ".*/lora_[ab]", ".*/ia3_.*", ".*/bias", "prompt/embedding")


def make_trainer(config=CONFIG, trainable=trainer.ALL, shape=(1, 1, 1), num_microbatches=1, optimizer=None):
    optimizer = optimizer or optimizers.adafactor(optimizers.constant_rate(0.01), multiply_by_parameter_scale=False)
    return trainer.Trainer(Model(config), optimizer, Loss(), mesh(shape), 0, num_microbatches, trainable)


def size(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
