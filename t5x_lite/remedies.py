"""What libraries and the system raise and a user can mend, as the one line that the command line prints for it."""

import errno
import sys

from t5x_lite.errors import first_line

# Package -> what brings it: an extra of setup.cfg, or None for one that every installation has.
_PACKAGES = {
    "apache_beam": "corpus",
    "cld3": "corpus",
    "gcsfs": "gs",
    "langdetect": "corpus",
    "resiliparse": "corpus",
    "s3fs": "s3",
    "seqio": None,
    "tensorboard": None,
    "tensorflow": None,
    "tensorflow_datasets": None,
    "tensorflow_text": None,
    "warcio": "corpus",
}
# Job -> what takes less memory.
_SMALLER = {
    "train": "lower BATCH_SIZE, raise train.num_microbatches, set T5Config.remat = 'full', or shard over more devices "
    "by MESH; t5x-lite plan says what a step needs",
    "eval": "lower Evaluation.batch_size or TASK_FEATURE_LENGTHS, or shard over more devices by MESH",
    "infer": "lower infer.batch_size, infer.max_input_length or Decoder.max_length, or shard by Mesh.shape",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def remedy(problem: BaseException, job: str) -> str | None:
    """One line on what happened and what to do; None for what is no mistake of the user's but of the program.

    Args:
      job: that was running, for what it can do with less memory.
    """
    problem = _original(problem)
    match problem:
        case MemoryError():
            return f"out of memory on this machine ({first_line(problem) or 'Python has none left'}): {_smaller(job)}"
        case ModuleNotFoundError() if (name := (problem.name or "").partition(".")[0]) in _PACKAGES:
            extra = _PACKAGES[name]
            return f"{job} needs the package {name}: " + (
                f"pip install 't5x-lite[{extra}]'" if extra else "it is not installed; bash launch/install.sh brings it"
            )
        case OSError() if problem.errno in _FULL:
            return f"the disk is full{_at(problem)}: make room, or name a folder on another one"
        case OSError() if problem.errno in _CLOSED:
            return f"no access{_at(problem)} ({problem.strerror}): see to its owner and mode, or name another place"
    # Known only where JAX is loaded already: nothing else raises it.
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(problem, jax.errors.JaxRuntimeError):
        said = str(problem)
        if said.startswith("RESOURCE_EXHAUSTED") and "memory" in said.lower():
            return f"out of memory on a device ({first_line(problem)}): {_smaller(job)}"
    return None


def _original(problem: BaseException) -> BaseException:
    """What was raised: gin puts an object of a class of its own in its place, which lacks what C code keeps (errno)."""
    while problem.__suppress_context__ and type(problem.__context__) in type(problem).__mro__[1:2]:
        problem = problem.__context__
    return problem


def _smaller(job: str) -> str:
    return _SMALLER.get(job, "give it less at once, or run it on a machine that has more")


def _at(problem: OSError) -> str:
    name = problem.filename2 or problem.filename
    return f" at {name}" if name else ""
