#!/usr/bin/env bash
# Builds the GPU image and enters it, with models, datasets and this repository mounted.
set -euo pipefail

IMAGE=${IMAGE:-dct-vl:latest}                          # name of the image that is built and run
BASE_IMAGE=${BASE_IMAGE:-}                             # another base than the Dockerfile's
MODELS_DIR=${MODELS_DIR:-/models}                      # on the host; /models in the container
DATASETS_DIR=${DATASETS_DIR:-/datasets}                # on the host; /datasets in the container
HF_HOME=${HF_HOME:-${HOME:-/root}/.cache/huggingface}  # on the host; /hf in the container
GPUS=${GPUS:-all}                                      # all, none, or device numbers: 0,1
SHM_SIZE=${SHM_SIZE:-16g}                              # loader workers and NCCL share memory there

# Passed on by name where they are set. Docker reads the values from the environment itself, so
# that no secret appears on a command line, in the list of processes or in --dry-run.
PASSED_ON=(
    HF_TOKEN HF_ENDPOINT HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
    WANDB_API_KEY WANDB_BASE_URL WANDB_ENTITY WANDB_MODE WANDB_PROJECT
)
INSIDE=/workspace/dct-vl
REPOSITORY=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat << EOF
usage: bash make-and-run-docker.sh [option…] [--] [command…]

Builds the image from the Dockerfile and runs the command in it (default: bash).

  --dry-run     print the docker commands, run nothing (needs no docker)
  --root        be root in the container; default: your own user and group id
  --build-only  build the image and stop
  --no-build    run the image as it was built before
  --help        this text

Environment variables and what they are now:
  IMAGE=$IMAGE
  BASE_IMAGE=${BASE_IMAGE:-(as in the Dockerfile)}
  MODELS_DIR=$MODELS_DIR
  DATASETS_DIR=$DATASETS_DIR
  HF_HOME=$HF_HOME
  GPUS=$GPUS
  SHM_SIZE=$SHM_SIZE
Passed on where set: ${PASSED_ON[*]}
EOF
}

fail() {
    echo "make-and-run-docker.sh: $1" >&2
    exit 1
}

dry_run=false as_root=false build=true run=true
while (($#)); do
    case $1 in
        --dry-run) dry_run=true ;;
        --root) as_root=true ;;
        --build-only) run=false ;;
        --no-build) build=false ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            shift
            break
            ;;
        -*) fail "unknown option $1; see --help" ;;
        *) break ;;
    esac
    shift
done
command=("$@")
((${#command[@]})) || command=(bash)
$build || $run || fail "--build-only and --no-build together leave nothing to do"

if ! $dry_run; then
    command -v docker > /dev/null \
        || fail "docker is not on PATH: install Docker Engine and the NVIDIA Container Toolkit, or use --dry-run; without docker, bash launch/setup_env.sh makes a Python environment"
    docker info > /dev/null 2>&1 \
        || fail "docker cannot reach its engine: start it, or add $(id -un) to the group docker"
fi

# Docker would make a missing folder on the host, owned by root and empty, and would take a relative
# path for the name of a volume.
$run && for name in MODELS_DIR DATASETS_DIR; do
    if [[ -d ${!name} ]]; then
        printf -v "$name" '%s' "$(cd -- "${!name}" && pwd)"
    else
        message="$name is ${!name}, which is not a folder: make it, or set $name to where the files are"
        $dry_run && echo "make-and-run-docker.sh: note: $message" >&2 && continue
        fail "$message"
    fi
done

user_id=$(id -u) group_id=$(id -g)
if $as_root; then
    user_id=0 group_id=0
fi

build_command=(docker build --tag "$IMAGE")
[[ -n $BASE_IMAGE ]] && build_command+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
build_command+=(--build-arg "USER_ID=$user_id" --build-arg "GROUP_ID=$group_id")
build_command+=(--file "$REPOSITORY/Dockerfile" "$REPOSITORY")

run_command=(docker run --rm --interactive)
[[ -t 0 && -t 1 ]] && run_command+=(--tty)
case $GPUS in
    none) ;;
    all) run_command+=(--gpus all) ;;
    # The inner quotes belong to docker's own syntax for a list of devices.
    *) run_command+=(--gpus "\"device=$GPUS\"") ;;
esac
# Limits as in NVIDIA's own instructions: pinned memory for NCCL, and a large stack.
run_command+=(--shm-size "$SHM_SIZE" --ulimit memlock=-1 --ulimit stack=67108864)
run_command+=(--user "$user_id:$group_id" --workdir "$INSIDE")
run_command+=(--volume "$REPOSITORY:$INSIDE")
run_command+=(--volume "$MODELS_DIR:/models" --volume "$DATASETS_DIR:/datasets")
[[ -d $HF_HOME ]] && run_command+=(--volume "$(cd -- "$HF_HOME" && pwd):/hf" --env HF_HOME=/hf)
for name in "${PASSED_ON[@]}"; do
    [[ -n ${!name:-} ]] && run_command+=(--env "$name")
done
run_command+=("$IMAGE" "${command[@]}")

show() {
    printf '%q ' "$@"
    echo
}

if $build; then
    if $dry_run; then show "${build_command[@]}"; else "${build_command[@]}"; fi
fi
if $run; then
    if $dry_run; then show "${run_command[@]}"; else exec "${run_command[@]}"; fi
fi
