"""Which system wrote a path, told by what is there; and reading it, whichever it is."""

import dataclasses

from etils import epath

from t5x_lite import checkpoints, vocabularies
from t5x_lite.errors import UserError
from t5x_lite.interop import hugging_face_folder, mesh_tensorflow, native, t5x
from t5x_lite.interop import weights as w
from t5x_lite.models import T5Config

NATIVE, HUGGING_FACE, T5X, MESH_TENSORFLOW = "t5x_lite", "hugging_face", "t5x", "mesh_tensorflow"


def detect(path, step: int | None = None) -> tuple[str, epath.Path]:
    """The format of a checkpoint, and where exactly it is.

    Args:
      path: one checkpoint, or a folder of several; of Mesh TensorFlow also the prefix `model.ckpt-N`.
      step: which of several; the newest by default.

    Raises:
      UserError: nothing that can be read, or no such step.
    """
    path = epath.Path(path)
    if checkpoints.is_step(path) or checkpoints.steps(path):
        return NATIVE, checkpoints.find_step(path, step)
    if hugging_face_folder.is_one(path):
        return HUGGING_FACE, path
    if t5x.is_one(path):
        return T5X, path
    name = path.name.removesuffix(".index")
    if mesh_tensorflow.PREFIX.fullmatch(f"{name}.index") and (path.parent / f"{name}.index").exists():
        return MESH_TENSORFLOW, path.parent / name
    for kind, found in ((T5X, t5x.steps(path)), (MESH_TENSORFLOW, mesh_tensorflow.steps(path))):
        if found:
            if step is not None and step not in found:
                raise UserError(f"no checkpoint of step {step} under {path}; there are {', '.join(map(str, found))}")
            return kind, epath.Path(found[max(found) if step is None else step])
    raise UserError(
        f"no checkpoint under {path}: name a MODEL_DIR or one of its {checkpoints.FOLDER}, a Hugging Face folder "
        "(config.json and model.safetensors or pytorch_model.bin), T5X's checkpoint_N, or a TensorFlow model.ckpt-N"
    )


def read(
    path,
    *,
    step: int | None = None,
    model: T5Config | None = None,
    rules: w.Rules = (),
    optimizer_state: bool = False,
    vocabulary: vocabularies.Vocabulary | None = None,
) -> tuple[str, w.Weights]:
    """The format of a checkpoint and what is in it; `model` and `vocabulary` where it does not say or says it wrongly.

    Raises:
      UserError: nothing that can be read, or parameters that do not fit the model, each named.
    """
    kind, path = detect(path, step)
    if kind == NATIVE:
        weights = native.read(path, rules=rules, optimizer_state=optimizer_state)
        if model is not None:
            weights = dataclasses.replace(weights, config=model).cast(w.common_dtype(weights.params.values()))
    elif kind == HUGGING_FACE:
        weights = hugging_face_folder.read(path, model=model, rules=rules)
    elif kind == T5X:
        weights = t5x.read(path, model=model, rules=rules, optimizer_state=optimizer_state)
    else:
        weights = mesh_tensorflow.read(path, model=model, rules=rules)
    if vocabulary is not None:
        weights = dataclasses.replace(weights, vocabulary=vocabulary.to_dict())
    weights.check(str(path))
    return kind, weights
