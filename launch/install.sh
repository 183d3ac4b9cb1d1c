#!/usr/bin/env bash
# Makes the checkout's own environment with the pinned versions of constraints.txt, or finds it ready.
#
#   bash launch/install.sh                        into .venv, about 3 GB
#   PYTHON=python3.12 bash launch/install.sh      into .venv-3.12, with that interpreter
#   EXTRAS=test,gpu bash launch/install.sh        for an NVIDIA GPU (or test,tpu)
#
# The other scripts source this file; it leaves the environment's folder in $venv.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Whatever environment the caller sits in must not leak into this one.
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME

fail() { echo "launch/install.sh: $*" >&2; exit 1; }

# TensorFlow has wheels for these versions; the interpreter is run, because a shim may stand for nothing.
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true; }
describe() { local v; v=$(version_of "$1"); echo "${v:-nothing that runs}"; }
supported() { case "$(version_of "$1")" in 3.11.*|3.12.*|3.13.*) ;; *) return 1 ;; esac; }

# 3.13 comes last: seqio needs editdistance, which has no wheel for it, so that a C++ compiler is needed.
python=${PYTHON:-}
if [ -n "$python" ]; then
  supported "$python" ||
    fail "PYTHON=$python is $(describe "$python"), but 3.11 to 3.13 is needed, as in PYTHON=python3.12"
else
  for candidate in python3 python3.12 python3.11 python3.13; do
    if supported "$candidate"; then python=$candidate; break; fi
  done
  [ -n "$python" ] ||
    fail "no Python 3.11, 3.12 or 3.13 found (python3 is $(describe python3)): install one, or set PYTHON=/path/to/one"
fi
version=$(version_of "$python")

# The plain name is for the default interpreter, so that trying another one does not replace it.
venv=$root/.venv
[ -z "${PYTHON:-}" ] || venv=$root/.venv-${version%.*}
extras=${EXTRAS:-test}

# Everything that decides what is installed: a stamp that says the same means there is nothing to do. The folder is part
# of it, because an environment cannot be moved.
stamp=$venv/t5x-lite.stamp
wanted=$({ echo "$root $version $extras"; cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt"; } |
  "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')

install() {
  local start=$SECONDS installer=pip
  # A checkout may hold an environment that is not ours to delete. The file that says it is ours is written first.
  if [ -e "$venv" ] && [ ! -e "$venv/t5x-lite.made-here" ]; then
    fail "$venv exists and was not made by this script: move it away, or choose another name with PYTHON=$python"
  fi
  ! uv --version >/dev/null 2>&1 || installer=uv
  echo "Installing T5X-lite [$extras] into $venv with Python $version and $installer ..."

  # From nothing each time: what an interrupted or older installation left behind cannot be told from what is right.
  rm -rf "$venv"
  mkdir "$venv"
  touch "$venv/t5x-lite.made-here"
  # The constraints bind the tools that build the packages, too: some of the dependencies come as sources only.
  if [ "$installer" = uv ]; then
    uv venv --quiet --allow-existing --python "$(command -v "$python")" "$venv"
    uv pip install --python "$venv/bin/python" --quiet \
      --constraints "$root/constraints.txt" --build-constraints "$root/constraints.txt" --editable "${root}[$extras]"
  else
    "$python" -m venv "$venv" ||
      fail "$python cannot make environments: install its venv module (python3-venv on Debian and Ubuntu) or uv"
    PIP_CONSTRAINT=$root/constraints.txt PIP_BUILD_CONSTRAINT=$root/constraints.txt \
      "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${root}[$extras]"
  fi
  echo "$wanted" > "$stamp"
  echo "Installed in $((SECONDS - start)) s: $(du -sh "$venv" | cut -f1) in $venv"
}

ready() { [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; }

if ! ready; then
  # Two scripts started together must not build the same folder: the second waits and finds it ready.
  if command -v flock >/dev/null; then
    (flock 9; ready || install) 9> "$venv.lock"
  else
    install
  fi
fi
