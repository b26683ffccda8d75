#!/usr/bin/env bash
# Which tokenizer reads small print best at which cost? Draws pages of numbers, pretrains a model of
# 25 M parameters with the stock tokenizer, switches it to each other tokenizer, fine-tunes all for
# the same steps on the same samples, and writes table and plots. About 40 minutes on one H200; on
# several GPUs that many runs of stage 2 go at once.
set -euo pipefail

: "${OUTPUT_DIR:=outputs/study}"     # the experiment's YAML names the same folder
: "${NUM_ENTRIES:=120000}"           # pages to draw
: "${SEEDS:=1 2 3}"                  # of the tokenizers that the question is about
: "${REPEATED:=pixel28 dct28_lp dct28_420}"
: "${ONCE:=pixel pixel_downscale dct21_420 post_dct adaptive}"      # with the first seed
: "${NUM_GPUS:=1}"                   # runs of stage 2 at once, one a GPU
: "${NUM_PROCS:=$(nproc)}"           # for drawing and preparing
: "${PRETRAIN:=}"                    # more overrides of stage 1, like trainer.max_steps=100
: "${SWITCH:=}"                      # more overrides of stage 2

cd "$(dirname "$0")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
started=$SECONDS
step() { printf '\n[%3d s] %s\n' "$((SECONDS - started))" "$*"; }
read -ra pretrain <<<"$PRETRAIN"

if [ ! -d "$OUTPUT_DIR/wds/.nv-meta" ]; then
  step "drawing $NUM_ENTRIES pages of numbers and making shards"
  "$PYTHON" -m data_prep draw --output-dir "$OUTPUT_DIR/raw" --num-entries "$NUM_ENTRIES" \
    --detail numbers --image-size 224 --no-defects --workers "$NUM_PROCS"
  "$PYTHON" -m data_prep cambrian --data-dir "$OUTPUT_DIR/raw" --output-dir "$OUTPUT_DIR/wds" \
    --workers "$NUM_PROCS" --shuffle-seed 1 --shard-size "$((NUM_ENTRIES / 60))"
  "$PYTHON" -m data_prep prepare "$OUTPUT_DIR/wds" --split 96,2,2
  "$PYTHON" -m training random-model "$OUTPUT_DIR/random" --shape small \
    --corpus "$OUTPUT_DIR/raw/cambrian737k.json"
fi
if [ ! -f "$OUTPUT_DIR/pretrained/config.json" ]; then
  step "stage 1: pretraining with pixel"
  "$PYTHON" -m training fit experiment=dct_tokenizer/study_pretrain "model.path=$OUTPUT_DIR/random" \
    "data.path=$OUTPUT_DIR/wds" "log_dir=$OUTPUT_DIR" ${pretrain[@]+"${pretrain[@]}"}
  "$PYTHON" -m evaluation export "$OUTPUT_DIR/pretrain" "$OUTPUT_DIR/pretrained"
fi
if [ ! -f "$OUTPUT_DIR/measured.json" ]; then
  step "statistics of the coefficients on the training pages"
  "$PYTHON" -m dct_tokenizer stats "$OUTPUT_DIR/wds" --tokenizer dct28_420 --max-pictures 2000 --max-pixels 50176 \
    --output "$OUTPUT_DIR/measured.json"
fi

jobs="$OUTPUT_DIR/jobs.txt"
: >"$jobs"
for seed in $SEEDS; do
  for tokenizer in $REPEATED; do
    echo "$tokenizer-$seed tokenizer=$tokenizer seed=$seed" >>"$jobs"
  done
done
first=${SEEDS%% *}
for tokenizer in $ONCE; do
  echo "$tokenizer-$first tokenizer=$tokenizer seed=$first" >>"$jobs"
done
echo "dct28_420-plain-$first tokenizer=dct28_420 tokenizer.whiten=false seed=$first" >>"$jobs"
echo "dct28_420-measured-$first tokenizer=dct28_420" \
  "tokenizer.statistics=$OUTPUT_DIR/measured.json seed=$first" >>"$jobs"

step "stage 2: $(wc -l <"$jobs") runs, $NUM_GPUS at once"
run_one() {
  read -ra words <<<"$1"
  read -ra switch <<<"$SWITCH"
  run="$OUTPUT_DIR/runs/${words[0]}"
  log="$OUTPUT_DIR/logs/${words[0]}.log"
  [ -e "$run/summary.html" ] && [ -n "$(ls "$run/checkpoints" 2>/dev/null)" ] && return
  if [ "$NUM_GPUS" -gt 1 ]; then export CUDA_VISIBLE_DEVICES=$SLOT; fi
  "$PYTHON" -m training fit experiment=dct_tokenizer/study "experiment_name=${words[0]}" \
    "model.path=$OUTPUT_DIR/pretrained" "data.path=$OUTPUT_DIR/wds" \
    "log_dir=$OUTPUT_DIR/runs" "${words[@]:1}" ${switch[@]+"${switch[@]}"} >"$log" 2>&1 ||
    { echo "error: ${words[0]} failed, see $log" >&2; return 1; }
  echo "${words[0]}: $(tail -n 1 "$OUTPUT_DIR/runs/${words[0]}/validation.jsonl")"
}
score() {
  read -ra runs <<<"$1"
  if [ "$NUM_GPUS" -gt 1 ]; then export CUDA_VISIBLE_DEVICES=$SLOT; fi
  "$PYTHON" -m evaluation words "${runs[@]}" --split test --batch-size 128 \
    >"$OUTPUT_DIR/logs/words-$SLOT.log" 2>&1 ||
    { echo "error: see $OUTPUT_DIR/logs/words-$SLOT.log" >&2; return 1; }
}
export -f run_one score
export OUTPUT_DIR PYTHON NUM_GPUS SWITCH
mkdir -p "$OUTPUT_DIR/logs"
# shellcheck disable=SC2016  # the inner shell expands it
xargs -d '\n' -P "$NUM_GPUS" -n 1 --process-slot-var=SLOT bash -c 'run_one "$0"' <"$jobs"

step "words of held-out pages, teacher-forced"
unscored=$(for run in "$OUTPUT_DIR"/runs/*; do [ -s "$run/words.jsonl" ] || echo "$run"; done)
per_gpu=$(($(wc -w <<<"$unscored") / NUM_GPUS + 1))
# shellcheck disable=SC2016,SC2086
printf '%s\n' $unscored | xargs -r -n "$per_gpu" |
  xargs -d '\n' -r -P "$NUM_GPUS" -n 1 --process-slot-var=SLOT bash -c 'score "$0"'

step "table and plots"
"$PYTHON" -m evaluation study "$OUTPUT_DIR/runs" --output "$OUTPUT_DIR/report"
