#!/usr/bin/env bash
# Which tokenizer reads small print best at which cost? Draws lessons and pages of numbers and lines,
# pretrains a model of 25 M parameters with the stock tokenizer, switches it to each other tokenizer,
# fine-tunes all for the same steps on the same samples, and writes table and plots. On one H100 with
# 16 cores, which reading the pages keeps busy: half an hour. Stopped at any place it goes on from there.
set -euo pipefail

: "${OUTPUT_DIR:=outputs/study}"     # the experiment's YAML names the same folder
: "${NUM_LESSONS:=180000}"           # pages of stage 1
: "${NUM_ENTRIES:=120000}"           # pages of stage 2
: "${SEEDS:=1 2 3}"                  # of the tokenizers that the question is about
: "${REPEATED:=pixel28 dct28_lp dct28_420}"
: "${ONCE:=pixel pixel_downscale dct21_420 post_dct adaptive}"      # with the first seed
: "${NUM_GPUS:=1}"
: "${RUNS_PER_GPU:=8}"               # of stage 2, side by side: small steps leave a GPU idle
: "${NUM_PROCS:=$(env -u OMP_NUM_THREADS nproc)}"      # of drawing, preparing and reading pages; nproc
                                     # answers OMP_NUM_THREADS where that is set
: "${BATCH:=128}"                    # pages at once in scoring and in measuring speed
: "${PRETRAIN:=}"                    # more overrides of stage 1, like trainer.max_steps=100
: "${SWITCH:=}"                      # more overrides of stage 2

cd "$(dirname "$0")/.."
# shellcheck source=launch/setup_env.sh
source launch/setup_env.sh
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
started=$SECONDS
step() { printf '\n[%3d s] %s\n' "$((SECONDS - started))" "$*"; }
read -ra pretrain <<<"$PRETRAIN"

at_once=$((NUM_GPUS * RUNS_PER_GPU))
make_pages() {  # name detail number
  [ -d "$OUTPUT_DIR/$1/.nv-meta" ] && return
  "$PYTHON" -m data_prep draw --output-dir "$OUTPUT_DIR/raw-$1" --num-entries "$3" \
    --detail "$2" --image-size 224 --no-defects --workers "$NUM_PROCS"
  "$PYTHON" -m data_prep cambrian --data-dir "$OUTPUT_DIR/raw-$1" --output-dir "$OUTPUT_DIR/$1" \
    --workers "$NUM_PROCS" --shuffle-seed 1 --shard-size "$(($3 / 60))"
  "$PYTHON" -m data_prep prepare "$OUTPUT_DIR/$1" --split 96,2,2
}

step "drawing $NUM_LESSONS lessons and $NUM_ENTRIES pages, and making shards"
make_pages lessons lessons "$NUM_LESSONS"
make_pages wds numbers "$NUM_ENTRIES"
if [ ! -f "$OUTPUT_DIR/pretrained/config.json" ]; then
  step "stage 1: pretraining with pixel"
  [ -f "$OUTPUT_DIR/random/config.json" ] ||
    "$PYTHON" -m dct_vl random-model "$OUTPUT_DIR/random" --shape small \
      --corpus "$OUTPUT_DIR/raw-lessons/cambrian737k.json"
  "$PYTHON" -m dct_vl fit experiment=dct_tokenizer/study_pretrain "model.path=$OUTPUT_DIR/random" \
    "data.path=$OUTPUT_DIR/lessons" "log_dir=$OUTPUT_DIR" ${pretrain[@]+"${pretrain[@]}"}
  step "stage 1: exporting it for stage 2"
  "$PYTHON" -m dct_vl export "$OUTPUT_DIR/pretrain" "$OUTPUT_DIR/pretrained"
fi
if [ ! -f "$OUTPUT_DIR/measured.json" ]; then
  step "statistics of the coefficients on the training pages"
  "$PYTHON" -m dct_tokenizer stats "$OUTPUT_DIR/wds" --tokenizer dct28_420 --max-pictures 2000 --max-pixels 50176 \
    --output "$OUTPUT_DIR/measured.json"
fi

jobs="$OUTPUT_DIR/jobs.txt"
: >"$jobs"
first=${SEEDS%% *}
# every tokenizer once before any twice, so that a stop in the middle leaves something of each
for tokenizer in $REPEATED $ONCE; do
  echo "$tokenizer-$first tokenizer=$tokenizer seed=$first" >>"$jobs"
done
echo "dct28_420-plain-$first tokenizer=dct28_420 tokenizer.whiten=false seed=$first" >>"$jobs"
echo "dct28_420-measured-$first tokenizer=dct28_420" \
  "tokenizer.statistics=$OUTPUT_DIR/measured.json seed=$first" >>"$jobs"
for seed in $SEEDS; do
  [ "$seed" = "$first" ] && continue
  for tokenizer in $REPEATED; do
    echo "$tokenizer-$seed tokenizer=$tokenizer seed=$seed" >>"$jobs"
  done
done

step "stage 2: $(wc -l <"$jobs") runs, $at_once at once"
# pages are read by these; a trainer itself waits for its GPU most of the time
workers=$((NUM_PROCS > at_once ? NUM_PROCS / at_once : 1))
on_gpu() { if [ "$NUM_GPUS" -gt 1 ]; then export CUDA_VISIBLE_DEVICES=$((SLOT % NUM_GPUS)); fi; }
run_one() {
  read -ra words <<<"$1"
  read -ra switch <<<"$SWITCH"
  run="$OUTPUT_DIR/runs/${words[0]}"
  log="$OUTPUT_DIR/logs/${words[0]}.log"
  if [ -f "$run/config.yaml" ]; then
    last=$(sed -n 's/^  max_steps: //p' "$run/config.yaml")
    [ -d "$run/checkpoints/step-$(printf %08d "$last")" ] && return
  fi
  on_gpu
  "$PYTHON" -m dct_vl fit experiment=dct_tokenizer/study "experiment_name=${words[0]}" \
    "model.path=$OUTPUT_DIR/pretrained" "data.path=$OUTPUT_DIR/wds" "data.num_workers=$workers" \
    "log_dir=$OUTPUT_DIR/runs" "${words[@]:1}" ${switch[@]+"${switch[@]}"} >"$log" 2>&1 ||
    { echo "error: ${words[0]} failed, see $log" >&2; return 1; }
  echo "${words[0]}: $(tail -n 1 "$OUTPUT_DIR/runs/${words[0]}/validation.jsonl")"
}
score() {
  read -ra runs <<<"$1"
  on_gpu
  log="$OUTPUT_DIR/logs/$2-$SLOT.log"
  "$PYTHON" -m dct_vl "$2" "${runs[@]}" --split test --batch-size "$BATCH" >"$log" 2>&1 ||
    { echo "error: see $log" >&2; return 1; }
}
# the runs without a file, in as many processes as can go at once
each_run() {  # verb file processes runs
  local missing per_process
  missing=$(for run in "${@:4}"; do [ -s "$run/$2" ] || echo "$run"; done)
  per_process=$((($(wc -w <<<"$missing") + $3 - 1) / $3))
  # shellcheck disable=SC2016,SC2086
  printf '%s\n' $missing | xargs -r -n "$((per_process > 0 ? per_process : 1))" |
    xargs -d '\n' -r -P "$3" -n 1 --process-slot-var=SLOT bash -c 'score "$0" '"$1"
}
export -f run_one score on_gpu
export OUTPUT_DIR PYTHON NUM_GPUS SWITCH BATCH workers
mkdir -p "$OUTPUT_DIR/logs"
# shellcheck disable=SC2016  # the inner shell expands it
xargs -d '\n' -P "$at_once" -n 1 --process-slot-var=SLOT bash -c 'run_one "$0"' <"$jobs"

step "words of held-out pages, teacher-forced"
each_run words words.jsonl "$at_once" "$OUTPUT_DIR"/runs/*
step "speed of each tokenizer, one at a time on a GPU"
each_run speed speed.json "$NUM_GPUS" "$OUTPUT_DIR"/runs/*-"$first"

step "table and plots"
"$PYTHON" -m dct_vl study "$OUTPUT_DIR/runs" --output "$OUTPUT_DIR/report"
