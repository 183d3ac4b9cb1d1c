#!/usr/bin/env bash
# Trains on a slice of Cloud TPUs, or on several: asks for it, installs this checkout on its hosts, trains, follows the
# log, and starts again what was pre-empted.
#
#   export NAME=t5x-lite ZONE=europe-west4-b TPU=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite
#   bash launch/tpu_vm.sh create                  a queued resource; waits until it is there
#   bash launch/tpu_vm.sh install                 on all hosts, some minutes
#   bash launch/tpu_vm.sh train --gin_file=models/t5_1_1/large.gin --gin_file=runs/pretrain.gin \
#     --gin.MIXTURE_OR_TASK_NAME=c4_v220_span_corruption --gin.MESH="{'data': 1, 'fsdp': 16, 'tensor': 1}" \
#     --gin.Mesh.platform=tpu --gin.NUM_STREAMS=64 --model_dir=gs://my-bucket/runs/large
#   bash launch/tpu_vm.sh logs                    follows it again; WORKER=3 another host than the first
#   bash launch/tpu_vm.sh stop                    the run saves and ends
#   bash launch/tpu_vm.sh delete                  ends what it costs
#   bash launch/tpu_vm.sh --dry_run train …       any of them: prints the commands of gcloud and runs none
#
# Edit:   NAME, ZONE, TPU (the type, as in `gcloud compute tpus accelerator-types list`) and RUNTIME (its image), and if
#         need be SLICES=2; CREATE_FLAGS='--spot --service-account=…'; SSH_FLAGS=--tunnel-through-iap;
#         FILES='mine.gin my_tasks.py', copied beside the checkout's; SETTINGS='TFDS_DATA_DIR=gs://…' for the run;
#         PYTHON_VERSION=3.12. More than one host needs `ssh-add ~/.ssh/google_compute_engine` before.
# Costs:  its chips times hours, from the moment that `create` returns until `delete`, whether they train or not: 16
#         chips as it stands. What the run would need: t5x-lite plan --hardware=v5e:4x4 … Only what was pre-empted is
#         deleted without being asked; `bash launch/tpu_vm.sh train …; bash launch/tpu_vm.sh delete` ends both.
# Stops:  0 is done. On 75 (told to stop, has saved), and when the TPU is taken away, `train` begins again, on a new TPU
#         if need be; any other exit code of the run is this script's, too. This works while the script runs: start it
#         where it can stay (tmux). Ctrl-C leaves the run going.
# Not tried on a TPU; tests/launch/test_tpu_vm.py runs it on folders in place of hosts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "launch/tpu_vm.sh: $*" >&2; exit 1; }

# Words as a shell reads them, each quoted where it must be.
quoted() {
  local word text=
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_=./:,@%+-]*) text="$text ${word@Q}" ;;
      *) text="$text $word" ;;
    esac
  done
  echo "${text# }"
}

# ----------------------------------------------------------------------------------------------------------------------
# Here
# ----------------------------------------------------------------------------------------------------------------------

queued_resources() {
  if [ -n "$dry_run" ]; then
    echo "gcloud compute tpus queued-resources $(quoted "$@")"
  else
    gcloud compute tpus queued-resources "$@"
  fi
}

# The exit code is that of the first host whose command failed; 255 is ssh's own.
on_hosts() {
  local hosts=$1
  shift
  # shellcheck disable=SC2086  # several flags in one variable
  queued_resources ssh "$NAME" --zone="$ZONE" --node="${hosts%/*}" --worker="${hosts#*/}" ${SSH_FLAGS:-} \
    --command="$(settings) bash t5x-lite/launch/tpu_vm.sh on_host $(quoted "$@")"
}

# What a host has to know of the variables here. A quoted assignment would be taken for a command's name.
settings() { echo "PYTHON_VERSION=$(quoted "$PYTHON_VERSION") SETTINGS=$(quoted "${SETTINGS:-}")"; }

state() { queued_resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'; }

# Waits until the answer is a lasting one: a TPU that cannot be asked about may be there.
taken_away() {
  local now
  while true; do
    now=$(state) || now=
    case $now in
      ACTIVE) return 1 ;;
      SUSPENDED | FAILED) return 0 ;;
      *) sleep "$poll" ;;
    esac
  done
}

create() {
  local nodes=(--node-id="$NAME") now before=
  [ "${SLICES:-1}" = 1 ] || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
  # shellcheck disable=SC2086
  queued_resources create "$NAME" --zone="$ZONE" --accelerator-type="$TPU" --runtime-version="$RUNTIME" "${nodes[@]}" \
    ${CREATE_FLAGS:-}
  if [ -n "$dry_run" ]; then state; return; fi
  while now=$(state); [ "$now" != ACTIVE ]; do
    case $now in
      FAILED | SUSPENDING | SUSPENDED) fail "$NAME is $now: delete it, then create it anew" ;;
    esac
    [ "$now" = "$before" ] || echo "$NAME: $now"
    before=$now
    sleep "$poll"
  done
  echo "$NAME: ACTIVE"
}

install() {
  # The code is unpacked anew, so that no file of before stays; the environment beside it is kept where it still serves.
  local archive unpack
  unpack='mkdir -p t5x-lite && cd t5x-lite && rm -rf t5x_lite tasks gin launch && tar -xzf ../t5x-lite.tgz'
  archive=$(mktemp -d)/t5x-lite.tgz
  # shellcheck disable=SC2086
  tar --create --gzip --file="$archive" --exclude=__pycache__ --exclude='*.egg-info' \
    setup.cfg pyproject.toml constraints.txt README.md LICENSE t5x_lite tasks gin launch ${FILES:-}
  # shellcheck disable=SC2086
  queued_resources scp "$archive" "$NAME:t5x-lite.tgz" --zone="$ZONE" --node=all --worker=all ${SSH_FLAGS:-}
  rm -r "$(dirname "$archive")"
  # shellcheck disable=SC2086
  queued_resources ssh "$NAME" --zone="$ZONE" --node=all --worker=all ${SSH_FLAGS:-} \
    --command="$unpack && $(settings) bash launch/tpu_vm.sh on_host install"
}

# Ends with the run's exit code, or 255 where the connection or the TPU is gone.
follow() { on_hosts "0/${WORKER:-0}" follow; }

train() {
  local code
  if [ -n "$dry_run" ]; then
    on_hosts all/all start "$@"
    follow
    echo "# and where the TPU was taken away:"
    delete
    create
    install
    return
  fi
  while true; do
    code=0
    { on_hosts all/all start "$@" && follow; } || code=$?
    while [ "$code" = 255 ] && ! taken_away; do
      echo "$NAME: connection lost, following again"
      sleep "$poll"
      code=0
      follow || code=$?
    done
    case $code in
      75 | 255) echo "$NAME: stopped ($code), starting again" ;;
      *) exit "$code" ;;
    esac
    if taken_away; then
      delete
      create
      install
    fi
  done
}

delete() { queued_resources delete "$NAME" --zone="$ZONE" --force --quiet; }

# ----------------------------------------------------------------------------------------------------------------------
# On a host
# ----------------------------------------------------------------------------------------------------------------------

run=$HOME/t5x-lite-run  # on a host: log, pid, the exit code when it has ended

# The images come with an older Python.
environment() {
  export PATH=$HOME/.local/bin:$PATH EXTRAS=tpu PYTHON
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  uv python install --quiet "$PYTHON_VERSION"
  PYTHON=$(uv python find "$PYTHON_VERSION")
  # shellcheck source=launch/install.sh
  source launch/install.sh
}

running() { [ -e "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; }

start_here() {
  # The hosts of a run end within seconds of each other.
  local waited=0
  while running; do
    [ "$waited" -lt 60 ] || fail "a run is going on: stop it first"
    sleep 1
    waited=$((waited + 1))
  done
  environment
  mkdir -p "$run"
  [ ! -e "$run/log" ] || mv "$run/log" "$run/log.before"
  rm -f "$run/code" "$run/stopped"
  # Outlives the connection. SIGTERM, from `stop` or at the machine's end, is for the run: the shell that waits for it
  # goes on, and writes down how it ended.
  # shellcheck disable=SC2016,SC2086
  setsid nohup env ${SETTINGS:-} bash -c 'trap : TERM; code=0; "${@:2}" || code=$?; echo "$code" > "$1"' _ "$run/code" \
    "$venv/bin/t5x-lite" train "$@" < /dev/null > "$run/log" 2>&1 &
  echo $! > "$run/pid"
}

follow_here() {
  tail --lines=1000 --follow --pid="$(cat "$run/pid")" "$run/log"
  local code=75  # nobody wrote it down: the machine has been down in between
  [ ! -e "$run/code" ] || code=$(cat "$run/code")
  # Told to stop by its user, who does not want it back.
  [ ! -e "$run/stopped" ] || code=143
  echo "exit code $code"
  exit "$code"
}

stop_here() {
  running || return 0
  touch "$run/stopped"
  kill -TERM -- "-$(cat "$run/pid")"
}

# ----------------------------------------------------------------------------------------------------------------------

PYTHON_VERSION=${PYTHON_VERSION:-3.12}
dry_run=
if [ "${1:-}" = --dry_run ]; then dry_run=yes; shift; fi
command=${1:-}
[ $# = 0 ] || shift
if [ "$command" = on_host ]; then
  case $1 in
    install) environment ;;
    start) shift; start_here "$@" ;;
    follow) follow_here ;;
    stop) stop_here ;;
  esac
  exit
fi

poll=${POLL_SECONDS:-30}
needed='NAME ZONE'
[ "$command" != create ] && [ "$command" != train ] || needed="$needed TPU RUNTIME"
for variable in $needed; do
  [ -n "${!variable:-}" ] || fail "set $variable, see the head of this file"
done
case $command in
  create | install | train | delete) "$command" "$@" ;;
  logs) follow ;;
  stop) on_hosts all/all stop ;;
  *) fail "say what to do: create, install, train, logs, stop or delete" ;;
esac
