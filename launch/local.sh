#!/usr/bin/env bash
# The quick start: pretrains, finetunes and uses a small T5 on this machine, from text that is already here (the
# documentation inside the installed Python packages), with nothing fetched once the packages are installed.
#
#   bash launch/local.sh                          results under runs/quickstart
#   RUN_DIR=/data/t5 bash launch/local.sh         elsewhere
#
# Run it again after an interruption: each training job goes on from its last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh

run_dir=${RUN_DIR:-$PWD/runs/quickstart}
mkdir -p "$run_dir"
export PATH=$venv/bin:$PATH

step=0
banner() {
  step=$((step + 1))
  printf '\n=== %d/7  %s  (%d min %02d s since the start)\n' "$step" "$*" $((SECONDS / 60)) $((SECONDS % 60))
}

banner "Collect the corpus: docstrings of the standard library and the installed packages"
python -P -m t5x_lite.tasks.pydocs

banner "Pretrain: fill in masked spans"
t5x-lite train --gin_file=examples/quickstart_pretrain.gin "--gin.MODEL_DIR=$run_dir/pretrain"

banner "Finetune from scratch, for comparison"
t5x-lite train --gin_file=examples/quickstart_finetune.gin "--gin.MODEL_DIR=$run_dir/scratch"

banner "Finetune from the pretrained checkpoint"
t5x-lite train --gin_file=examples/quickstart_finetune.gin "--gin.MODEL_DIR=$run_dir/finetune" \
  "--gin.INITIAL_CHECKPOINT_PATH=$run_dir/pretrain"

banner "Evaluate both"
for name in scratch finetune; do
  t5x-lite eval --gin_file=examples/quickstart_eval.gin "--gin.MODEL_DIR=$run_dir/$name"
done

banner "Predict on three texts"
cat > "$run_dir/texts.jsonl" <<'TEXTS'
{"inputs": "summarize: Return a new array of the given shape and type, filled with zeros."}
{"inputs": "summarize: Open the file and return a stream. Raise OSError when it cannot be opened."}
{"inputs": "library: Computes the softmax cross entropy between logits and labels."}
TEXTS
t5x-lite infer "--checkpoint=$run_dir/finetune" "--input=$run_dir/texts.jsonl" "--output=$run_dir/predictions.jsonl"
cat "$run_dir/predictions.jsonl"

banner "What came out"
t5x-lite report --gin_file=examples/quickstart_report.gin "--gin.RUN_DIR=$run_dir"
