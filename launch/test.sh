#!/usr/bin/env bash
# Installs T5X-lite if need be and runs its tests on the CPU.
#
#   bash launch/test.sh                           everything but the tests marked `slow`
#   bash launch/test.sh tests/test_cli.py -k gin  further arguments are pytest's; -m '' takes the slow ones in, too
#   PYTHON=python3.12 bash launch/test.sh         another interpreter, in an environment of its own
#   PROCESSES=8 bash launch/test.sh               more of the test files at once than two
#
# Running it often: JAX_COMPILATION_CACHE_DIR=/tmp/jax-cache JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 keeps compiled
# programs from one run to the next (a decoding test file: 62 s of CPU time, then 15 s). A first run gains nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh

# -P keeps the checkout off sys.path: t5x_lite.tasks must not be importable under a second name, `tasks`.
"$venv/bin/python" -P - <<'PYTHON'
import platform
from importlib.metadata import version

pins = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "orbax-checkpoint", "seqio", "tensorflow"))
print(f"Python {platform.python_version()}: {pins}", flush=True)
PYTHON
# A file's tests share what they compile, so a file is the unit that is dealt out.
exec "$venv/bin/python" -P -m pytest -m "not slow" -n "${PROCESSES:-2}" --dist loadfile --durations=10 "$@"
