"""What is set before JAX looks for its devices: flags of the compilers, and where compiled programs are kept."""

import os
from collections.abc import Sequence

import gin
from t5x_lite.errors import UserError


@gin.configurable(module="t5x_lite")
def device_flags(xla: Sequence[str] = (), libtpu: Sequence[str] = ()) -> None:
    """Adds flags to the environment's XLA_FLAGS and LIBTPU_INIT_ARGS; what stands there already has the last word.

    XLA and libtpu end the process at a flag that they do not know.

    Args:
      xla: such as '--xla_gpu_enable_latency_hiding_scheduler=true'.
      libtpu: such as '--xla_tpu_scoped_vmem_limit_kib=98304'.

    Raises:
      UserError: not a list of texts that begin with `--`.
    """
    for parameter, variable, flags in (("xla", "XLA_FLAGS", xla), ("libtpu", "LIBTPU_INIT_ARGS", libtpu)):
        if isinstance(flags, str) or not all(isinstance(flag, str) and flag.startswith("--") for flag in flags):
            raise UserError(f"device_flags.{parameter} = {flags!r}: give a list of texts such as ['--xla_...=true']")
        present = os.environ.get(variable, "").split()
        named = {flag.partition("=")[0] for flag in present}
        added = [flag for flag in flags if flag.partition("=")[0] not in named]
        if added:
            os.environ[variable] = " ".join([*added, *present])


@gin.configurable(module="t5x_lite")
def compilation_cache(folder: str | None = "~/.cache/t5x-lite/xla") -> None:
    """Keep compiled programs on disk, so that the second start of a run does not compile again.

    `--gin.compilation_cache.folder=None` or the environment's `T5X_LITE_COMPILATION_CACHE=off` switches it off. JAX's
    own `JAX_COMPILATION_CACHE_DIR`, if set, is left as it is.

    Args:
      folder: where; None for no cache.
    """
    if folder is None or os.environ.get("T5X_LITE_COMPILATION_CACHE", "").lower() in ("off", "0", "false", "no"):
        return
    import jax  # late: the flags are answered without it

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]  # JAX makes them at run time
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))
