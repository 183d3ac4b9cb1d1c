"""The mistakes that are made at a command line, one a row: what is typed, and the whole line that answers it.

Those of flags alone are in tests/test_cli.py, of gin's syntax and names in tests/configuration, of several processes in
tests/test_processes.py, of pydocs in tests/tasks/test_jobs.py, of data in test_data_mistakes.py.
"""

import sys

import jax.numpy as jnp
import npz_runs
import pytest

from t5x_lite import cli
from t5x_lite.trainer import Trainer

RUN = "--model_dir=run"
INFER = ["infer", "--checkpoint=model", "--input=lines.txt", "--output=out.jsonl"]
PLAN = ["plan", "--gin_file=models/t5_1_1/mini.gin", "--gin_file=runs/pretrain.gin", "--gin.BATCH_SIZE=16"]
SHIPPED = "t5x_lite/gin"
NO_CHECKPOINT = (
    "name a MODEL_DIR or one of its checkpoints, a Hugging Face folder (config.json and model.safetensors or "
    "pytorch_model.bin), T5X's checkpoint_N, or a TensorFlow model.ckpt-N"
)


def train(*flags: str, rows: str = "rows.npz") -> list[str]:
    return [*npz_runs.flags(rows), RUN, *flags]


MISTAKES = {
    # --- names and values ---
    "a macro misspelt": (
        train("--gin.BATCHSIZE=8"),
        "--gin.BATCHSIZE: no binding refers to the macro BATCHSIZE (did you mean BATCH_SIZE?)",
    ),
    "a parameter misspelt": (
        train("--gin.T5Config.emb_dims=8"),
        "--gin.T5Config.emb_dims: T5Config has no parameter 'emb_dims' (did you mean emb_dim or mlp_dim?)",
    ),
    "a configurable misspelt": (
        train("--gin.T5Cfg.emb_dim=8"),
        "--gin.T5Cfg.emb_dim: no configurable 'T5Cfg' (did you mean T5Config?); one of a module of yours needs "
        "`import that.module` in a gin file",
    ),
    "another optimizer's parameter": (
        train("--gin.adamw.weight_decay=0.1"),
        "--gin.adamw.weight_decay would be read by nothing, since this job uses no adamw (did you mean "
        "adafactor.weight_decay_rate?); correct the name, or remove the binding",
    ),
    "another job's parameter": (
        train("--gin.evaluate.checkpoint=3"),
        "--gin.evaluate.checkpoint: evaluate is of the job eval, and this is train; remove the binding",
    ),
    "no equals sign": (["train", "TRAIN_STEPS=5"], "'TRAIN_STEPS=5' is not a flag; did you mean --gin.TRAIN_STEPS=5?"),
    "quotes that the shell took": (
        train("--gin.MESH={data: 8}"),
        "--gin.MESH={data: 8}: not a value; check brackets and quotes, put the whole flag in single quotes for the "
        "shell, and write text as '\"text\"'",
    ),
    "text for a number": (
        train("--gin.BATCH_SIZE=many"),
        "--gin.BATCH_SIZE = 'many': train.batch_size takes a whole number",
    ),
    "a fraction for a count": (
        train("--gin.TRAIN_STEPS=1e3"),
        "--gin.TRAIN_STEPS = 1000.0: train.train_steps takes a whole number",
    ),
    "negative steps": (train("--gin.TRAIN_STEPS=-5"), "train.train_steps must be a whole number of at least 1, not -5"),
    "a macro that is not set": (
        npz_runs.flags("rows.npz"),
        f"not set: MODEL_DIR (needed at {SHIPPED}/runs/train_npz.gin:16). Add for example "
        "--model_dir=/tmp/t5x_lite/run",
    ),
    # --- gin files ---
    "a gin file misspelt": (
        ["train", "--gin_file=corpus/en.jin"],
        "--gin_file=corpus/en.jin: no gin file 'corpus/en.jin' (did you mean corpus/en.gin or corpus/en.noclean.gin "
        "or corpus/realnewslike.gin?); run from its folder, or give its folder in --gin_search_paths",
    ),
    "a broken line in a gin file": (
        train("--gin_file=wrong.gin"),
        "wrong.gin:2: Couldn't parse statement, expected ':' or '='. in `TRAIN_STEPS 5` (a binding is NAME = VALUE; "
        "text needs quotes in a file)",
    ),
    "two model files": (
        train("--gin_file=models/t5_1_1/small.gin"),
        f"{SHIPPED}/models/t5_1_1/mini.gin:10 and {SHIPPED}/models/t5_1_1/small.gin:9 both set T5Config.emb_dim: name "
        "only one of these files",
    ),
    "another corpus than there is": (
        ["corpus", "--variant=english", "--input=x", "--output_dir=y"],
        "--variant=english: no such variant; there is en, en.noclean, multilingual, realnewslike, webtextlike",
    ),
    # --- devices ---
    "a batch that does not divide": (
        train("--gin.BATCH_SIZE=12"),
        "BATCH_SIZE = 12 is not divisible by 8 (8 devices that share a batch × 1 microbatches); try 8",
    ),
    "microbatches that do not divide": (
        train("--gin.train.num_microbatches=3"),
        "BATCH_SIZE = 8 is not divisible by 24 (8 devices that share a batch × 3 microbatches); try 24",
    ),
    "a mesh of other devices": (
        train("--gin.MESH={'data': 3}"),
        "MESH = {'data': 3} does not fit the 8 cpu device(s) found; let one axis take what is left: "
        'MESH = {"data": -1, "fsdp": 1, "tensor": 1}',
    ),
    "an axis that there is not": (
        train("--gin.MESH={'dat': 8}"),
        "MESH names unknown axes ['dat']; the axes are data, fsdp, tensor",
    ),
    "heads that do not divide": (
        train("--gin.MESH={'tensor': 8}", "--gin.T5Config.num_heads=3"),
        "parameter decoder/relpos_bias/rel_embedding: its axis 'heads' of 3 is not divisible by mesh axis 'tensor' of "
        "8; change MESH or Mesh.rules",
    ),
    "no GPU here": (
        train("--gin_file=mesh/gpu1.gin"),
        "Mesh.platform = 'gpu', but JAX found 8 cpu device(s): see to drivers and jax[gpu], or use another file of "
        "gin/mesh",
    ),
    "hardware without a shape": (
        [*PLAN, "--hardware=h100"],
        "--hardware=h100: no such hardware; write [SLICESx]KIND:SHAPE, as in v5e:16x16, 2xv5p:4x4x8, h200:64 or cpu:8, "
        "with one of v2, v3, v4, v5e, v5p, v6e, a100, h100, h200, cpu",
    ),
    "a plan with what it does not read": (
        [*PLAN, "--hardware=cpu:8", "--gin.adamw.weight_decay=0.1"],
        "--gin.adamw.weight_decay would be read by nothing, since this job uses no adamw (did you mean "
        "adafactor.weight_decay_rate?); correct the name, or remove the binding",
    ),
    "a plan of a mesh that does not fit": (  # and what train would read may be bound
        [*PLAN, "--hardware=cpu:8", "--gin.T5Config.remat=full", "--gin.MESH={'data': 3}"],
        "MESH = {'data': 3} does not fit the 8 cpu device(s) found; let one axis take what is left: "
        'MESH = {"data": -1, "fsdp": 1, "tensor": 1}',
    ),
    # --- rows ---
    "rows that are not there": (
        train(rows="none-*.npz"),
        "NpzSource.pattern = 'none-*.npz': no such file; give a .npz file or a glob",
    ),
    "text as rows": (
        train(rows="pairs.tsv"),
        "pairs.tsv is no .npz file: give what numpy.savez wrote, or text as tsv:, jsonl: or text:",
    ),
    "tokens beyond the embedding": (
        train("--gin.T5Config.vocab_size=32"),
        "the data have the token 62, which takes 63 ids, but T5Config.vocab_size = 32; set T5Config.vocab_size to 128",
    ),
    # --- places ---
    "a file as MODEL_DIR": (
        train("--model_dir=rows.npz"),
        "MODEL_DIR = rows.npz cannot be written to (File exists): mend that, or name another",
    ),
    "a store that there is not": (
        train("--model_dir=gcs://bucket/run"),
        "gcs://bucket/run: no such kind of path; there are local ones, gs:// and s3://",
    ),
    # --- checkpoints ---
    "no checkpoint there": (
        train("--gin.train.initial_checkpoint_path=/nowhere"),
        f"no checkpoint under /nowhere: {NO_CHECKPOINT}",
    ),
    "another model's checkpoint": (
        train("--gin.train.initial_checkpoint_path=model"),
        "model/checkpoints/3 does not fit the configured model: decoder/layers/mlp/wi_0/kernel is (1, 16, 32), not "
        "(1, 16, 16); decoder/layers/mlp/wi_1/kernel is (1, 16, 32), not (1, 16, 16); decoder/layers/mlp/wo/kernel is "
        "(1, 32, 16), not (1, 16, 16) and 5 more; use its model file",
    ),
    "a Hugging Face folder without weights": (
        ["convert", "--from=without_weights", "--to=new"],
        f"no checkpoint under without_weights: {NO_CHECKPOINT}",
    ),
    "another architecture": (
        ["convert", "--from=not_t5", "--to=new"],
        "config.json: model_type must be t5, mt5 or umt5, not 'llama'",
    ),
    "a format that there is not": (
        ["convert", "--from=model", "--to=new", "--format=huggingface"],
        "convert.format must be one of t5x_lite, hugging_face, t5x, stablehlo, not 'huggingface'",
    ),
    "a target that is there": (
        ["convert", "--from=model", "--to=model"],
        "model exists: name a new folder, nothing is written over",
    ),
    "no run to report on": (["report", "nowhere"], "nowhere is no folder: give the MODEL_DIR of a run"),
    # --- asking ---
    "no input there": (
        ["infer", "--checkpoint=model", "--input=none.txt", "--output=out.jsonl"],
        "Cannot read the input none.txt (FileNotFoundError): check infer.input.",
    ),
    "a binary file as input": (
        ["infer", "--checkpoint=model", "--input=rows.npz", "--output=out.jsonl"],
        'Cannot tell the format of rows.npz: set infer.input_format to "txt", "tsv" or "jsonl".',
    ),
    "the input as output": (
        ["infer", "--checkpoint=model", "--input=lines.txt", "--output=lines.txt"],
        "infer.output is the input lines.txt: name another",
    ),
    "a method that there is not": (
        [*INFER, "--gin.Decoder.method=bem"],
        'Decoder.method must be "greedy", "sample" or "beam", not \'bem\'',
    ),
    "a checkpoint without a vocabulary": (
        ["infer", "--checkpoint=textless", "--input=lines.txt", "--output=out.jsonl"],
        "textless carries no vocabulary: set infer.vocabulary=@SentencePieceVocabulary() and "
        "SentencePieceVocabulary.path",
    ),
    # --- the study ---
    "a row that the paper does not have": (
        ["study", "--row=T6-99"],
        "--row=T6-99: no such row (did you mean T6-50 or T6-25 or T6-15?)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_by_one_line(name, told):
    argv, line = MISTAKES[name]
    assert told(*argv) == line


def test_weights_that_torch_alone_can_read(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert told("convert", "--from=pickled", "--to=new") == (
        "pickled has its weights in PyTorch's format only, and torch is not installed: pip install torch, or save the "
        "model with safetensors"
    )


def test_the_later_of_two_files_of_ones_own_wins_and_that_is_said(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    flags = [word for word in train("--dry_run") if "TRAIN_STEPS" not in word]
    assert cli.main([*flags, "--gin_file=short.gin", "--gin_file=long.gin", "--gin.MESH={'data': 3}"]) == 2
    assert (
        "t5x-lite: note: long.gin:1 sets TRAIN_STEPS = 9, instead of 8 of short.gin:1: the later file wins\n"
    ) in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# What the system and libraries raise
# ----------------------------------------------------------------------------------------------------------------------


def _raises(problem):
    def raising(*args, **kwargs):
        raise problem

    return raising


def test_out_of_memory_on_a_device(told, monkeypatch):
    # XLA's own error, of an array that no machine holds.
    monkeypatch.setattr(Trainer, "abstract_state", property(lambda self: jnp.zeros(1 << 50)))
    assert told(*train()) == (
        "out of memory on a device (RESOURCE_EXHAUSTED: Out of memory allocating 4503599627370496 bytes.): lower "
        "BATCH_SIZE, raise train.num_microbatches, set T5Config.remat = 'full', or shard over more devices by MESH; "
        "t5x-lite plan says what a step needs"
    )


@pytest.mark.parametrize(
    "problem, line",
    [
        (
            OSError(28, "No space left on device", "new/params"),
            "the disk is full at new/params: make room, or name a folder on another one",
        ),
        (
            PermissionError(13, "Permission denied", "/data/new"),
            "no access at /data/new (Permission denied): see to its owner and mode, or name another place",
        ),
        (
            OSError(30, "Read-only file system", "/data/new"),
            "no access at /data/new (Read-only file system): see to its owner and mode, or name another place",
        ),
        (
            MemoryError("Unable to allocate 9. TiB"),
            "out of memory on this machine (Unable to allocate 9. TiB): give it less at once, or run it on a machine "
            "that has more",
        ),
        (
            ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam.io"),
            "convert needs the package apache_beam: pip install 't5x-lite[corpus]'",
        ),
        (
            ModuleNotFoundError("No module named 'seqio'", name="seqio"),
            "convert needs the package seqio: it is not installed; bash launch/install.sh brings it",
        ),
    ],
)
def test_what_the_system_raises(told, monkeypatch, problem, line):
    monkeypatch.setattr("t5x_lite.interop.native.write", _raises(problem))
    assert told("convert", "--from=model", "--to=new") == line


@pytest.mark.parametrize("problem", [FileNotFoundError(2, "No such file", "x"), ModuleNotFoundError("m", name="mine")])
def test_what_is_a_fault_of_the_program_keeps_its_trace(here, monkeypatch, capsys, problem):
    monkeypatch.chdir(here)
    monkeypatch.setattr("t5x_lite.interop.native.write", _raises(problem))
    assert cli.main(["convert", "--from=model", "--to=new"]) == 1
    assert "Traceback" in capsys.readouterr().err
