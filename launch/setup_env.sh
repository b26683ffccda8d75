#!/usr/bin/env bash
# Makes the Python environment of this project, or finds the one that is there already.
#
#   bash launch/setup_env.sh          # make or check it, say what was done
#   source launch/setup_env.sh        # the same, and set PYTHON for the calling script
#
# Which Python is used, first match wins:
#   DCT_VL_PYTHON=/path/python        this one, as it is; nothing is installed
#   the active python3                if it holds NeMo already (a container); nothing is installed
#   .venv/bin/python                  made and filled here with the pins of constraints/
# DCT_VL_PROFILE=gpu installs this project's packages into the active Python of a container whose
# torch and Transformer Engine stay as they are (the Dockerfile does that).
# DCT_VL_BASE_PYTHON names the Python 3.10-3.12 that .venv is made from (default: python3).
# DCT_VL_TORCH_INDEX is where torch is looked for first on a machine without an NVIDIA GPU, so that
# several GB of CUDA libraries stay away (default: PyTorch's index of CPU builds). Empty, or where it
# cannot be reached: the package registry, as for everything else.

dct_vl_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

dct_vl_say() { echo "[setup] $*" >&2; }

dct_vl_fail() {
  echo "[setup] error: $*" >&2
  return 1
}

# The marker holds the hash of everything that decides what gets installed.
dct_vl_fingerprint() {
  cat "$dct_vl_root/pyproject.toml" "$dct_vl_root/setup.py" "$dct_vl_root"/constraints/*.txt "$dct_vl_root/launch/setup_env.sh" \
    | sha256sum | cut -d' ' -f1
}

dct_vl_check_python() {
  "$1" - <<'EOF' || return 1
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f"[setup] error: {sys.executable} is Python {sys.version.split()[0]}; NeMo 2.7.3 needs "
             "3.10, 3.11 or 3.12: set DCT_VL_BASE_PYTHON to such a Python")
EOF
}

dct_vl_check_disk() {
  local free_gib
  free_gib=$(($(df -Pk "$dct_vl_root" | awk 'NR==2 {print $4}') / 1048576))
  if [ "$free_gib" -lt "$1" ]; then
    dct_vl_fail "$free_gib GiB free at $dct_vl_root; the environment needs $1 GiB: free some space"
  fi
}

dct_vl_has_stack() {
  "$1" -c 'import importlib.util as u, sys
sys.exit(any(u.find_spec(m) is None for m in ("nemo", "megatron", "torch", "transformers", "hydra")))' \
    2>/dev/null
}

dct_vl_is_filled() { [ "$(cat "$1/.dct-vl" 2>/dev/null)" = "$2" ]; }

# An environment that is there already: can it be used, or filled?
dct_vl_check_venv() {
  local venv=$1 version again
  again="remove it (rm -rf $venv) and start again"
  version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
    || { dct_vl_fail "$venv is broken: its Python cannot be run, perhaps because the one it was made" \
      "from is gone: $again"; return 1; }
  case $version in
    3.10 | 3.11 | 3.12) ;;
    *) dct_vl_fail "$venv holds Python $version; NeMo 2.7.3 needs 3.10, 3.11 or 3.12: $again, with" \
      "DCT_VL_BASE_PYTHON set to such a Python"; return 1 ;;
  esac
}

dct_vl_make_venv() {
  local venv=$dct_vl_root/.venv base=${DCT_VL_BASE_PYTHON:-python3} fingerprint
  fingerprint=$(dct_vl_fingerprint)
  if [ -e "$venv/bin/python" ] || [ -L "$venv/bin/python" ]; then
    dct_vl_check_venv "$venv" || return 1
    if dct_vl_is_filled "$venv" "$fingerprint"; then return 0; fi
  fi
  command -v "$base" >/dev/null \
    || { dct_vl_fail "$base not found: install Python 3.11 or set DCT_VL_BASE_PYTHON"; return 1; }
  dct_vl_check_python "$base" || return 1
  dct_vl_check_disk 5 || return 1
  mkdir -p "$venv"
  # one process at a time; the lock ends with the process, and with the pip that it started
  (
    if command -v flock >/dev/null && ! flock --nonblock 9; then
      dct_vl_say "another process is making $venv: waiting for it"
      flock 9
    fi
    if ! dct_vl_is_filled "$venv" "$fingerprint"; then
      dct_vl_fill_venv "$venv" "$base" "$fingerprint"
    fi
  ) 9>"$venv/.lock"
}

dct_vl_fill_venv() {
  local venv=$1 base=$2 fingerprint=$3 started=$SECONDS
  if [ ! -x "$venv/bin/python" ]; then
    dct_vl_say "making $venv with $("$base" --version 2>&1)"
    "$base" -m venv "$venv" \
      || { dct_vl_fail "python -m venv failed: install the venv module (python3-venv)"; return 1; }
  fi
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 \
    || { dct_vl_fail "$venv is broken: it has no pip, perhaps because its making was interrupted:" \
      "remove it (rm -rf $venv) and start again"; return 1; }
  dct_vl_prefer_cpu_torch "$venv/bin/python"
  dct_vl_say "installing the pinned packages (2 GB, more with a CUDA build of torch; some minutes, once)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$dct_vl_root/constraints/cpu.txt" \
    --editable "${dct_vl_root}[dev]" 2>"$venv/pip.log" \
    || { tail -5 "$venv/pip.log" >&2; dct_vl_fail "pip failed; the whole log is $venv/pip.log"; return 1; }
  echo "$fingerprint" >"$venv/.dct-vl"
  dct_vl_say "environment ready in $((SECONDS - started)) s; dct-vl is on the path after: source $venv/bin/activate"
}

dct_vl_sees_gpu() {
  [ -e /proc/driver/nvidia/version ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }
}

# Torch alone, before the rest, whose requirement of torch is then met. No failure ends anything.
dct_vl_prefer_cpu_torch() {
  local python=$1 index=${DCT_VL_TORCH_INDEX-https://download.pytorch.org/whl/cpu} pin
  pin=$(sed -n 's/^torch==\([^; ]*\).*/\1/p' "$dct_vl_root/constraints/cpu.txt")
  if [ -z "$index" ] || dct_vl_sees_gpu || "$python" - "$pin" 2>/dev/null <<'EOF'
import sys
from importlib.metadata import version
sys.exit(version("torch").split("+")[0] != sys.argv[1])
EOF
  then
    return 0
  fi
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --retries 0 --timeout 10 \
    --index-url "$index" "torch==$pin" >/dev/null 2>&1 \
    || dct_vl_say "no torch $pin at $index: taking the package registry's, which may bring CUDA along"
}

dct_vl_install_gpu() {
  local python=$1 pins
  dct_vl_check_python "$python" || return 1
  "$python" -c 'import torch' 2>/dev/null \
    || { dct_vl_fail "DCT_VL_PROFILE=gpu installs beside a container's torch, and $python has none"; return 1; }
  # what the container brings stays: its versions become constraints of this installation
  pins=$(mktemp)
  "$python" - >"$pins" <<'EOF'
from importlib.metadata import distributions
keep = {"torch", "torchvision", "torchaudio", "triton", "transformer-engine", "transformer_engine",
        "flash-attn", "flash_attn", "numpy", "apex"}
for d in distributions():
    if (d.metadata["Name"] or "").lower() in keep:
        print(f"{d.metadata['Name']}=={d.version}")
EOF
  dct_vl_say "installing beside $(tr '\n' ' ' <"$pins")"
  # pip reads the image's own constraint file from PIP_CONSTRAINT; ours replaces it
  PIP_CONSTRAINT='' "$python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$dct_vl_root/constraints/gpu.txt" --constraint "$pins" \
    --editable "${dct_vl_root}[gpu]" || { dct_vl_fail "pip failed"; return 1; }
  rm -f "$pins"
}

dct_vl_setup() {
  if [ -n "${DCT_VL_PYTHON:-}" ]; then
    [ -x "$(command -v "$DCT_VL_PYTHON")" ] \
      || { dct_vl_fail "DCT_VL_PYTHON=$DCT_VL_PYTHON cannot be run"; return 1; }
    PYTHON=$DCT_VL_PYTHON
    dct_vl_say "using $PYTHON (DCT_VL_PYTHON)"
  elif [ "${DCT_VL_PROFILE:-}" = gpu ]; then
    PYTHON=$(command -v python3)
    dct_vl_install_gpu "$PYTHON" || return 1
  elif [ ! -d "$dct_vl_root/.venv" ] && command -v python3 >/dev/null && dct_vl_has_stack python3; then
    PYTHON=$(command -v python3)
    dct_vl_say "using the active $PYTHON, which holds the stack"
  else
    dct_vl_make_venv || return 1
    PYTHON=$dct_vl_root/.venv/bin/python
  fi
  export PYTHON
  export PYTHONPATH=$dct_vl_root${PYTHONPATH:+:$PYTHONPATH}
}

dct_vl_setup || { if [ "${BASH_SOURCE[0]}" = "$0" ]; then exit 1; else return 1; fi; }
