#!/usr/bin/env bash
# The whole pipeline, small, on this machine: no GPU, no download, nothing to prepare.
# Draws a dataset, makes shards, trains two visual tokenizers with the same number of tokens on the
# same samples, resumes one of them from a checkpoint in its middle, asks both about held-out
# images, exports one to a Hugging Face folder that answers without this project, and writes one
# page about all of it, outputs/quickstart/report.html, and summary.json. About 8 minutes on 2 cores.
set -euo pipefail

: "${TOKENIZER:=dct28_420}"          # python -m dct_tokenizer list
: "${CONTROL:=pixel_downscale}"             # what it is compared with
: "${NUM_ENTRIES:=4000}"             # conversations to draw
: "${STEPS:=400}"                    # optimizer steps of each run, 16 samples each
: "${OUTPUT_DIR:=outputs/quickstart}"

cd "$(dirname "$0")/.."
case $STEPS in
  *[!0-9]* | 0*) echo "error: STEPS=$STEPS is no number; expected at least 40" >&2; exit 2 ;;
esac
case $OUTPUT_DIR in
  # it becomes part of the trainer's overrides, whose grammar takes no others
  *[!A-Za-z0-9_./:+%@\ -]*)
    echo "error: OUTPUT_DIR=$OUTPUT_DIR: expected letters A to Z, digits, spaces and _ . / : + % @ -" >&2
    exit 2 ;;
esac
if [ "$STEPS" -lt 40 ]; then
  echo "error: STEPS=$STEPS is too few to learn and to resume anything; expected at least 40" >&2
  exit 2
fi
if [ -e "$OUTPUT_DIR" ] && [ ! -f "$OUTPUT_DIR/.quickstart" ] && [ -n "$(ls -A "$OUTPUT_DIR")" ]; then
  echo "error: OUTPUT_DIR=$OUTPUT_DIR holds something else; name an empty or new folder" >&2
  exit 2
fi
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh
# One thread for the trainer, the other core for its loader: OpenMP threads that wait for a shared
# core cost more than they bring.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} CUDA_VISIBLE_DEVICES=

started=$SECONDS
middle=$((STEPS / 2))
step() { printf '\n[%3d s] %s\n' "$((SECONDS - started))" "$*"; }
train() { "$PYTHON" -m dct_vl fit experiment=quickstart/tiny \
  "model.path=$OUTPUT_DIR/model" "data.path=$OUTPUT_DIR/wds" "log_dir=$OUTPUT_DIR/runs" \
  "trainer.max_steps=$STEPS" "trainer.save_every=$middle" trainer.keep_last=3 "$@"; }
ask() { "$PYTHON" -m dct_vl answers "$OUTPUT_DIR/runs/$1" --limit 120 "${@:2}"; }

rm -rf "$OUTPUT_DIR"
mkdir -p "$OUTPUT_DIR"
touch "$OUTPUT_DIR/.quickstart"

step "1/9 drawing $NUM_ENTRIES conversations about images, in the layout of Cambrian737k"
"$PYTHON" -m data_prep draw --output-dir "$OUTPUT_DIR/raw" --num-entries "$NUM_ENTRIES"

step "2/9 making shards and preparing them for Energon"
"$PYTHON" -m data_prep cambrian --data-dir "$OUTPUT_DIR/raw" --output-dir "$OUTPUT_DIR/wds"
"$PYTHON" -m data_prep prepare "$OUTPUT_DIR/wds" --split 8,1,1

step "3/9 writing a tiny Qwen2-VL with random weights and a tokenizer trained on the questions"
"$PYTHON" -m dct_vl random-model "$OUTPUT_DIR/model" --corpus "$OUTPUT_DIR/raw/cambrian737k.json"
"$PYTHON" -m dct_vl doctor "model.path=$OUTPUT_DIR/model" "data.path=$OUTPUT_DIR/wds"

step "4/9 training with $TOKENIZER, $STEPS steps"
train "tokenizer=$TOKENIZER" experiment_name=main

step "5/9 training with the control $CONTROL on the same samples"
train "tokenizer=$CONTROL" experiment_name=control

step "6/9 resuming $TOKENIZER from step $middle, to compare with the run that was not interrupted"
train "tokenizer=$TOKENIZER" experiment_name=resumed trainer.save_every=-1 \
  "trainer.resume=$OUTPUT_DIR/runs/main/checkpoints/step-$(printf %08d "$middle")" \
  "trainer.stop_at_step=$((middle + 20))"

step "7/9 asking about held-out images, and about blank ones"
ask main --output "$OUTPUT_DIR/answers/main.jsonl"
ask main --output "$OUTPUT_DIR/answers/blank.jsonl" --blank
ask control --output "$OUTPUT_DIR/answers/control.jsonl"

step "8/9 exporting $TOKENIZER, and asking the folder in a process that cannot import this project"
"$PYTHON" -m dct_vl export "$OUTPUT_DIR/runs/main" "$OUTPUT_DIR/hf" --outside 40

step "9/9 writing the report"
"$PYTHON" -m dct_vl quickstart "$OUTPUT_DIR" --resumed-from "$middle" \
  --seconds "$((SECONDS - started))"
