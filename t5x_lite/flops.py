"""How much arithmetic a training step needs, and how much the hardware could do: the two halves of MFU.

MFU (model FLOP utilisation, https://arxiv.org/abs/2204.02311 appendix B) divides the FLOP/s that the *model* needs by
the peak of the hardware. Recomputation (remat) is work of the implementation, so it is never counted.

Letters: `s` source length, `t` target length, `d` model width, `a` heads × head width, `v` vocabulary.
"""

import functools
import math
import time


def train_flops_per_example(config, s: int, t: int) -> float:
    """FLOPs of one forward and backward pass over one example.

    In an encoder-decoder a token meets the encoder or the decoder, never both, hence about 3·N·(s+t) in all and not the
    6·N·(s+t) of a decoder-only model; in a language model, each of the s + t tokens meets every weight. Only matrix
    products are counted (2 FLOPs a multiply-add); norms, softmax and activations are left out as usual. Positions are
    dense: padding costs as much as text and is counted.

    Args:
      config: a T5Config (read: emb_dim, num_heads, head_dim, mlp_dim, mlp_activations, num_encoder_layers,
        num_decoder_layers, vocab_size, is_language_model).
      s: source length in tokens, as fed to the encoder (padded or packed); 0 where a language model's rows are counted
        whole.
      t: target length in tokens, as fed to the decoder.

    Returns:
      FLOPs of one example: 3 × forward, as the backward pass needs two products for each one of the forward pass.
    """
    d, a, v = config.emb_dim, config.num_heads * config.head_dim, config.vocab_size
    # A gated MLP reads its input once for each activation, then projects back: "gelu"·"linear" makes three matrices.
    mlp = (len(config.mlp_activations) + 1) * d * config.mlp_dim
    if config.is_language_model:
        n = s + t
        layers = 2 * config.num_decoder_layers * n * (4 * d * a + mlp) + 4 * config.num_decoder_layers * n * n * a
        return 3.0 * (layers + 2 * n * d * v)
    # Per encoder token q, k, v, out and the MLP; then scores and weighted sums, each 2·s²·a a layer.
    encoder = 2 * config.num_encoder_layers * s * (4 * d * a + mlp) + 4 * config.num_encoder_layers * s * s * a
    # The decoder projects q, k, v, out for itself, q and out for the cross-attention; its k and v come from s tokens.
    decoder = 2 * config.num_decoder_layers * (t * (6 * d * a + mlp) + 2 * s * d * a)
    decoder += 4 * config.num_decoder_layers * (t * t + t * s) * a
    head = 2 * t * d * v
    return 3.0 * (encoder + decoder + head)


# Dense bf16 peaks in FLOP/s of one card. NVIDIA prints the figures with 2:4 sparsity, twice the dense ones.
#   H100 https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
#        with sparsity: SXM 1,979, NVL 1,671, PCIe 1,513 TFLOP/s
#   H200 https://www.nvidia.com/en-us/data-center/h200/  with sparsity: SXM 1,979, NVL 1,671
#   A100 https://www.nvidia.com/en-us/data-center/a100/  312 dense in every form
# The first entry whose words are all in the device kind wins, so the variants come before the plain name.
_GPU_PEAKS = (
    (("H200", "NVL"), 835.5e12),
    (("H200",), 989.5e12),
    (("H100", "NVL"), 835.5e12),
    (("H100", "PCIe"), 756.5e12),
    (("H100",), 989.5e12),
    (("A100",), 312e12),
)

# Dense bf16 peaks in FLOP/s of one TPU *chip*, its TensorCores, and how many of these make one JAX device.
# https://cloud.google.com/tpu/docs/{v3,v4,v5e,v5p,v6e,tpu7x}; v2: 180 TFLOP/s a board of four chips,
# https://doi.org/10.1145/3360307. v4 and v5p join both cores of a chip into one device ("megacore") by default.
_TPU_PEAKS = {
    "TPU v2": (45e12, 2, 1),
    "TPU v3": (123e12, 2, 1),
    "TPU v4": (275e12, 2, 2),
    "TPU v5 lite": (197e12, 1, 1),
    "TPU v5e": (197e12, 1, 1),
    "TPU v5": (459e12, 2, 2),
    "TPU v5p": (459e12, 2, 2),
    "TPU v6 lite": (918e12, 1, 1),
    "TPU v6e": (918e12, 1, 1),
    "TPU7x": (2307e12, 2, 1),
}


def published_peak(device_kind: str, num_cores: int | None = None) -> float | None:
    """Dense bf16 FLOP/s of one JAX device as its maker prints it, or None where the kind is not in the tables.

    Args:
      device_kind: `jax.Device.device_kind`, e.g. "NVIDIA H200" or "TPU v5 lite".
      num_cores: TensorCores of the device where it says so (a TPU's `num_cores`): a v4 chip may be split in two.
    """
    if device_kind in _TPU_PEAKS:
        chip, cores, usual = _TPU_PEAKS[device_kind]
        return chip * (num_cores or usual) / cores
    if "MIG" in device_kind:
        return None  # a slice of a card: the card's peak would make MFU several times too low
    for words, flops_per_second in _GPU_PEAKS:
        if all(word in device_kind for word in words):
            return flops_per_second
    return None


def peak(device=None, dtype=None) -> tuple[float, str]:
    """What one device could do at best.

    Args:
      device: a `jax.Device`; the first one by default.
      dtype: used only where the rate must be measured: float32 on a CPU by default, bfloat16 elsewhere.

    Returns:
      (FLOP/s of that device, how), how being "published" (the dense bf16 peak, whatever the run's dtype) or "measured"
      (a matrix product timed here; CPUs have no published peak, so MFU there reads "of a good matrix product").
      All CPU devices of a process share its cores: the measured rate is divided by their number.
    """
    import jax

    device = device or jax.devices()[0]
    published = published_peak(device.device_kind, getattr(device, "num_cores", None))
    if published is not None:
        return published, "published"
    dtype = dtype or ("float32" if device.platform == "cpu" else "bfloat16")
    rate = measured_matmul_rate(dtype, device)
    if device.platform == "cpu":
        rate /= jax.local_device_count("cpu")
    return rate, "measured"


def describe_peak(device=None, dtype=None) -> str:
    """One line for the user: what MFU is relative to."""
    import jax

    device = device or jax.devices()[0]
    flops_per_second, how = peak(device, dtype)
    if how == "published":
        return f"MFU is relative to {flops_per_second / 1e12:,.0f} TFLOP/s, the dense bf16 peak of {device.device_kind}"
    return (
        f"MFU is relative to {flops_per_second / 1e9:,.0f} GFLOP/s for each {device.device_kind} device, "
        "a matrix product measured here (no peak is published for it)"
    )


def measured_matmul_rate(dtype="float32", device=None) -> float:
    """Best rate of a square matrix product on random data, in FLOP/s; under a second, remembered for the process.

    Sizes double from 512 until the next one would take too long, and the best rate counts: a phone-sized CPU and a
    GPU both find a size that fills them. A busy machine gives a lower figure than an idle one.

    Args:
      dtype: of the operands and the result, a name or a dtype.
      device: a `jax.Device`; the first one by default.
    """
    import jax
    import numpy as np

    return _measure(np.dtype(jax.numpy.dtype(dtype)).name, device or jax.devices()[0])


_BUDGET_SECONDS = 0.5  # compiling a product costs some 0.05 s on top, for each of at most six sizes
_LARGEST = 16_384


@functools.cache
def _measure(dtype: str, device) -> float:
    import jax
    import jax.numpy as jnp
    import numpy as np

    # Random, for cards clock down less on zeros; one small block tiled, for drawing 16,384² numbers takes seconds.
    block = np.random.default_rng(0).standard_normal((512, 512), dtype=np.float32)
    product = jax.jit(jnp.matmul)
    best, deadline, n = 0.0, time.perf_counter() + _BUDGET_SECONDS, 512
    while True:
        x = jax.device_put(np.tile(block, (n // 512, n // 512)).astype(dtype), device)
        product(x, x).block_until_ready()  # compiles, and warms the caches
        seconds = math.inf
        for _ in range(5):
            start = time.perf_counter()
            product(x, x).block_until_ready()
            seconds = min(seconds, time.perf_counter() - start)
            if time.perf_counter() > deadline:
                break
        best = max(best, 2.0 * n**3 / seconds)
        n *= 2
        # The next size is eight times the work and runs at least twice (once to warm up).
        if n > _LARGEST or time.perf_counter() + 2 * 8 * seconds > deadline:
            return best
