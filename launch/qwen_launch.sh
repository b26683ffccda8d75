#!/usr/bin/env bash
# Fine-tunes Qwen2-VL or Qwen2.5-VL on 1 to N GPUs, or on the CPU. Every variable below can be set
# from outside:
#   TOKENIZER=dct14 MBS=2 GBS=64 DEVICES=8 bash launch/qwen_launch.sh
# Further settings follow as key=value (see dct_vl/runs/config/schema.py), and --dry-run prints what
# would be started:
#   bash launch/qwen_launch.sh trainer.max_steps=2000 optim.lr=2e-5
# Several machines: launch/slurm.sbatch, or the same command on each of them with torchrun's NNODES,
# NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail

: "${MBS:=1}"                        # samples a forward pass on each data-parallel rank
: "${GBS:=4}"                        # samples an optimizer step
: "${MINPIXELS:=784}"                # bounds of a resized picture's area, in pixels
: "${MAXPIXELS:=43904}"
: "${DEVICES:=auto}"                 # GPUs of this machine; "cpu" uses none, "auto" all of them
: "${NUM_PROC_PER_NODE:=}"           # processes of this machine; empty: one a GPU
: "${TOKENIZER:=dct28_420}"          # python -m dct_tokenizer list
: "${EXPERIMENT_NAME:=$TOKENIZER}"   # name of the run; its folder is LOG_DIR/EXPERIMENT_NAME
: "${TP_SIZE:=1}"                    # tensor, pipeline and context parallel sizes
: "${PP_SIZE:=1}"
: "${CP_SIZE:=1}"
: "${DATA_PATH:=/datasets/Cambrian737k-wds}"
: "${MODEL_PATH:=/models/Qwen2-VL-2B-Instruct}"
: "${LOG_DIR:=outputs/runs}"
: "${WANDB_PROJECT:=}"               # empty: Weights & Biases is not used

for setting in "$@"; do
  case $setting in
    experiment=* | model=* | tokenizer=* | experiment_name=* | -m | --multirun)
      echo "error: $setting: this script sets it from its variables (TOKENIZER, MODEL_PATH," \
        "EXPERIMENT_NAME); use \`dct-vl launch\` for experiments" >&2
      exit 2
      ;;
  esac
done
# paths are the caller's
case $DATA_PATH in
  *://*) ;;                          # a folder in an object store
  *) DATA_PATH=$(realpath -m -- "$DATA_PATH") ;;
esac
case $MODEL_PATH in
  auto | auto25) ;;                  # no folder: tiny models with random weights
  *) MODEL_PATH=$(realpath -m -- "$MODEL_PATH") ;;
esac
LOG_DIR=$(realpath -m -- "$LOG_DIR")

cd "$(dirname "$0")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh
export DEVICES NUM_PROC_PER_NODE

exec "$PYTHON" -m dct_vl launch \
  "experiment_name=$EXPERIMENT_NAME" \
  "tokenizer=$TOKENIZER" \
  "model.path=$MODEL_PATH" \
  "data.path=$DATA_PATH" \
  "data.min_pixels=$MINPIXELS" \
  "data.max_pixels=$MAXPIXELS" \
  "trainer.micro_batch_size=$MBS" \
  "trainer.global_batch_size=$GBS" \
  "trainer.tensor_parallel_size=$TP_SIZE" \
  "trainer.pipeline_parallel_size=$PP_SIZE" \
  "trainer.context_parallel_size=$CP_SIZE" \
  "log_dir=$LOG_DIR" \
  "logger.wandb_project=${WANDB_PROJECT:-null}" \
  "$@"
