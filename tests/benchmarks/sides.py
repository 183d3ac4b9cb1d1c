"""One side of a comparison: a process that trains or decodes a few times whenever it is told to.

Started by tests/benchmarks/compare.py. It reads one JSON object a line, `{"run": n}`, and answers each with one,
`{"seconds": [n times], "peak_bytes": …}`; the first answer, before any question, tells that it is ready and what that
took. Random tokens, of which every row is full, and random parameters: only the time is looked at.
"""

import functools
import json
import os
import sys
import time

import numpy as np

START = time.perf_counter()


class Side:
    """Makes `turn`, a function that trains some steps or decodes once, and waits for the result."""

    loss = None

    def run(self, n: int) -> list[float]:
        """Seconds of each of n turns; of training, those of one step."""
        steps = self.setup["steps"] if self.setup["work"] == "train" else 1
        times = []
        for _ in range(n):
            start = time.perf_counter()
            self.turn()
            times.append((time.perf_counter() - start) / steps)
        return times


class Ours(Side):
    def __init__(self, setup):
        import jax

        from t5x_lite import configuration
        from t5x_lite.models import Model, T5Config

        self.jax, self.setup = jax, setup
        bindings = [
            f"T5Config.{name}={value!r}"
            for name, value in {"dtype": setup["dtype"], "dropout_rate": 0.0, **setup["config"]}.items()
        ]
        configuration.parse([f"models/{setup['model']}.gin"], bindings)
        self.config = T5Config()
        self.model = Model(self.config)
        self.name = jax.devices()[0].device_kind
        if setup["work"] == "train":
            self._trains()
        else:
            self._decodes()

    def _trains(self):
        from t5x_lite import optimizers
        from t5x_lite.losses import Loss
        from t5x_lite.partitioning import MeshConfig
        from t5x_lite.trainer import Trainer

        make = {"adafactor": optimizers.adafactor, "adamw": optimizers.adamw}[self.setup["optimizer"]]
        optimizer = make(optimizers.constant_rate(1e-3))
        partitioner = MeshConfig().build(self.jax.devices()[:1])
        trainer = Trainer(self.model, optimizer, Loss(), partitioner)
        state = trainer.init()
        inputs, targets = tokens(self.setup, self.config.vocab_size)
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_target_tokens": targets,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_loss_weights": np.ones_like(targets),
        }
        if self.setup["packed"]:
            batch["encoder_segment_ids"] = np.ones_like(inputs)
            batch["decoder_segment_ids"] = np.ones_like(targets)
        batch = self.jax.device_put(batch, partitioner.batch)

        def turn():
            nonlocal state
            for _ in range(self.setup["steps"]):
                state, metrics = trainer.step(state, batch)
            self.loss = float(metrics["loss"])

        self.turn = turn

    def _decodes(self):
        from t5x_lite.decoding import Decoder

        method = {"greedy": "greedy"}.get(self.setup["work"], "beam")
        decoder = Decoder(max_length=self.setup["t"], method=method, num_beams=4)
        inputs, _ = tokens(self.setup, self.config.vocab_size)
        inputs = self.jax.device_put(inputs)
        params = self.jax.jit(self.model.init)(self.jax.random.key(0))
        # No token ends a row: both sides write all of them.
        answer = self.jax.jit(functools.partial(decoder, self.model, eos_id=-1))

        self.turn = lambda: np.asarray(answer(params, inputs)[0])

    def peak_bytes(self):
        stats = self.jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else resident_peak()


class HuggingFace(Side):
    def __init__(self, setup, compiled: bool):
        import torch
        import transformers

        self.torch, self.setup = torch, setup
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        c = json.loads(setup["shape"])
        config = transformers.T5Config(
            vocab_size=c["vocab_size"],
            d_model=c["emb_dim"],
            d_kv=c["head_dim"],
            d_ff=c["mlp_dim"],
            num_layers=c["num_encoder_layers"],
            num_decoder_layers=c["num_decoder_layers"],
            num_heads=c["num_heads"],
            feed_forward_proj="gated-gelu" if len(c["mlp_activations"]) == 2 else "relu",
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        model = transformers.T5ForConditionalGeneration(config)
        if not c["logits_via_embedding"]:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        self.model = model.to(self.device)
        inputs, targets = tokens(setup, c["vocab_size"])
        self.inputs = torch.tensor(inputs, dtype=torch.long, device=self.device)
        self.targets = torch.tensor(targets, dtype=torch.long, device=self.device)
        self.half = torch.bfloat16 if setup["dtype"] == "bfloat16" else None
        if setup["work"] == "train":
            self._trains(compiled)
        else:
            self._decodes(compiled)

    def _trains(self, compiled):
        torch, model = self.torch, self.model
        if self.setup["optimizer"] == "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, weight_decay=0.0)
        else:
            optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-3)
        mask = torch.ones_like(self.inputs)
        forward = torch.compile(model) if compiled else model

        def step():
            with torch.autocast(self.device, dtype=self.half or torch.bfloat16, enabled=self.half is not None):
                loss = forward(input_ids=self.inputs, attention_mask=mask, labels=self.targets).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        def turn():
            for _ in range(self.setup["steps"]):
                loss = step()
            self.loss = float(loss.detach())

        self.turn = turn

    def _decodes(self, compiled):
        torch = self.torch
        model = self.model.to(self.half) if self.half else self.model
        model.eval()
        if compiled:
            model.generation_config.cache_implementation = "static"
            model.forward = torch.compile(model.forward)
        n_tokens, beams = self.setup["t"], 1 if self.setup["work"] == "greedy" else 4

        def turn():
            with torch.inference_mode():
                ids = model.generate(
                    self.inputs, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, num_beams=beams
                )
            assert ids.cpu().shape[1] == n_tokens + 1

        self.turn = turn

    def peak_bytes(self):
        return self.torch.cuda.max_memory_allocated() if self.device == "cuda" else resident_peak()


def tokens(setup, vocab_size: int):
    """int32 [b, s] and [b, t], the same for all sides."""
    rng = np.random.default_rng(0)
    return tuple(
        rng.integers(3, min(vocab_size, 32_000), (setup["b"], n)).astype(np.int32) for n in (setup["s"], setup["t"])
    )


def resident_peak() -> int:
    """Bytes of memory that this process held at most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    # What libraries print must not stand among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    setup = json.loads(sys.argv[1])

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other sides use the same card
    kind = setup["side"]
    side = Ours(setup) if kind == "ours" else HuggingFace(setup, compiled=kind == "hf_compiled")
    made = time.perf_counter() - START
    first = side.run(1)[0]
    answer(device=side.name, start_seconds=made, first_seconds=first)
    for line in sys.stdin:
        times = side.run(json.loads(line)["run"])
        answer(seconds=times, peak_bytes=side.peak_bytes(), loss=side.loss)


if __name__ == "__main__":
    main()
