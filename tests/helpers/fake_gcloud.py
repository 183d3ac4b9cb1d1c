"""A `gcloud` whose TPU is two folders: it notes what it was told, copies files there, and runs there what it is to run.

Nothing of the network and of installing packages; all else is done as on a TPU's hosts: by bash, in homes of their own.
"""

import os
import pathlib
import sys

HOSTS = 2

# The world is a folder:
#   calls          one line a call of gcloud, a JSON list of its words
#   state          of the TPU, as `describe` prints it; absent where there is none
#   plan           one line for each start of the run: its exit code, then what the TPU's state is by then
#   hostN/         its home, with started.M: the arguments, one a line, of its Mth start
GCLOUD = """#!{python}
import json, pathlib, shutil, subprocess, sys
world = pathlib.Path({world!r})
words = sys.argv[1:]
with open(world / "calls", "a") as calls:
    calls.write(json.dumps(words) + "\\n")
assert words[:3] == ["compute", "tpus", "queued-resources"], words
state = world / "state"
flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
hosts = [world / f"host{{i}}" for i in range({hosts})]
if words[3] == "create":
    state.write_text("WAITING_FOR_RESOURCES")
    for host in hosts:
        host.mkdir()
elif words[3] == "describe":
    print(state.read_text())
    if state.read_text() == "WAITING_FOR_RESOURCES":
        state.write_text("ACTIVE")
elif words[3] == "delete":
    state.unlink()
    for host in hosts:
        shutil.rmtree(host)
elif words[3] == "scp":
    for host in hosts:
        shutil.copy(words[4], host / words[5].partition(":")[2])
elif words[3] == "ssh":
    for host in hosts if flags["worker"] == "all" else [hosts[int(flags["worker"])]]:
        code = subprocess.run(["bash", "-c", flags["command"]], cwd=host, env={{"HOME": str(host), "PATH": {path!r}}},
                              stdin=subprocess.DEVNULL).returncode
        if state.read_text() != "ACTIVE":
            code = 255
        if code:
            sys.exit(code)
"""

# In place of `uv`, and of the command that it would install.
UV = """#!/usr/bin/env bash
case "$*" in
  'python find'*) echo {python} ;;
  venv*) mkdir -p "${{@: -1}}/bin" ;;
  'pip install'*) echo "$@" >> "$HOME/installed"; cp {world}/t5x-lite "$(dirname "$4")" ;;
esac
"""
T5X_LITE = """#!/usr/bin/env bash
n=$(ls "$HOME"/started.* 2>/dev/null | wc -l)
printf '%s\\n' "$@" > "$HOME/started.$n"
echo "start $n in $PWD, $(env | grep ^TFDS_DATA_DIR)"
read -r code state <<< "$(sed -n "$(( $(cat {world}/starts 2>/dev/null | wc -l) / {hosts} + 1 ))p" {world}/plan)"
echo >> {world}/starts
if [ "$code" = waits ]; then
  trap 'echo told to stop; exit 75' TERM
  for _ in $(seq 600); do sleep 0.1; done
fi
if [ -n "$state" ]; then
  until grep -q 'on_host follow' {world}/calls; do sleep 0.1; done
  echo -n "$state" > {world}/state
fi
exit "$code"
"""


def make(world: pathlib.Path, plan: list[str]) -> dict[str, str]:
    """Fills the folder `world`; returns the environment whose `gcloud` it is."""
    programs = world / "programs"
    programs.mkdir(parents=True)
    path = f"{programs}:{os.environ['PATH']}"
    said = dict(world=str(world), python=sys.executable, hosts=HOSTS, path=path)
    for file, text in ((programs / "gcloud", GCLOUD), (programs / "uv", UV), (world / "t5x-lite", T5X_LITE)):
        file.write_text(text.format(**said))
        file.chmod(0o755)
    (world / "plan").write_text("\n".join(plan) + "\n")
    return {"PATH": path, "HOME": str(world)}
