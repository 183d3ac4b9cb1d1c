"""Several checkpoints that answer as one model, by the mean of their logits (`incremental.Ensemble`)."""

import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from t5x_lite import checkpoints
from t5x_lite.errors import UserError


def paths(checkpoint: str | Sequence[str], binding: str) -> list[str]:
    """The paths that are meant: a list, or one text with commas between. A path that exists may have a comma in it.

    Args:
      binding: to blame for an empty path.
    """
    if not isinstance(checkpoint, (str, os.PathLike)):
        found = [os.fspath(path) for path in checkpoint]
    elif "," in os.fspath(checkpoint) and not epath.Path(checkpoint).exists():
        found = os.fspath(checkpoint).split(",")
    else:
        return [os.fspath(checkpoint)]
    if not found or not all(path.strip() for path in found):
        raise UserError(
            f"{binding}={checkpoint!r} has an empty path: name one checkpoint, or several with commas between"
        )
    return [os.path.expanduser(path.strip()) for path in found]


def load(paths: Sequence[str], partitioner) -> tuple[Any, Any, list[dict[str, Any]]]:
    """The model, its parameters on the mesh (a tuple of several) and the checkpoints' metas.

    Raises:
      UserError: the checkpoints differ in their vocabulary or in what their models compute.
    """
    loaded, metas, models = [], [], []
    for path in paths:
        model, params, meta = checkpoints.load_for_inference(path, partitioner=partitioner)
        loaded.append(params)
        metas.append(meta)
        models.append(model)
        if meta.get("vocabulary") != metas[0].get("vocabulary"):
            raise UserError(
                f"{path} has another vocabulary than {paths[0]}: only checkpoints of one configuration can be averaged"
            )
        ours, first = model.config.to_dict(), models[0].config.to_dict()
        # What has no say in inference may differ.
        differ = [key for key in first if ours[key] != first[key] and key not in ("dropout_rate", "remat", "attention")]
        if differ:
            raise UserError(
                f"{path} has another T5Config.{differ[0]} ({ours[differ[0]]!r}) than {paths[0]} "
                f"({first[differ[0]]!r}): only checkpoints of one configuration can be averaged"
            )
    return models[0], loaded[0] if len(loaded) == 1 else tuple(loaded), metas
