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
SECONDS=0  # installation apart

step=0
banner() {
  step=$((step + 1))
  printf '\n=== %d/7  %s  (%d min %02d s since the start)\n' "$step" "$*" $((SECONDS / 60)) $((SECONDS % 60))
}

banner "Collect the corpus: docstrings of the standard library and the installed packages"
python -P -m t5x_lite.tasks.pydocs

banner "Pretrain: fill in masked spans"
t5x-lite train --gin_file=examples/quickstart_pretrain.gin --model_dir="$run_dir/pretrain"

banner "Finetune from scratch, for comparison"
t5x-lite train --gin_file=examples/quickstart_finetune.gin --model_dir="$run_dir/scratch"

banner "Finetune from the pretrained checkpoint"
t5x-lite train --gin_file=examples/quickstart_finetune.gin --model_dir="$run_dir/finetune" \
  --gin.INITIAL_CHECKPOINT_PATH="$run_dir/pretrain"

banner "Evaluate the newest checkpoint on the test split"
t5x-lite eval --gin_file=runs/eval.gin --gin.MIXTURE_OR_TASK_NAME=pydocs_library_and_summarize \
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 96, 'targets': 32}" --gin.SPLIT=test --gin.EVALUATION_EXAMPLES=200 \
  --model_dir="$run_dir/finetune"

banner "Ask it three things"
cat > "$run_dir/texts.txt" <<'TEXTS'
summarize: The array is filled with zeros and has the given shape and type. The order may be C or Fortran.
library: Computes the softmax cross entropy between logits and labels. Every label is the index of a class.
library: Plot the histogram of x on the given axes and return the patches. The colors cycle with the figure's style.
TEXTS
t5x-lite infer --checkpoint="$run_dir/finetune" --input="$run_dir/texts.txt" --output="$run_dir/predictions.jsonl" \
  --gin.infer.max_input_length=96 --gin.Decoder.max_length=32 --gin.infer.overwrite=True
cat "$run_dir/predictions.jsonl"

banner "What came out"
python -P launch/quickstart_summary.py "$run_dir"
printf '\ndone in %d min %02d s, installation apart\n' $((SECONDS / 60)) $((SECONDS % 60))
