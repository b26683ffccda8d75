"""Checks a machine and a run's inputs: one line each, with the fix, in a few seconds.

No weights are loaded and no device memory is taken.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.markers import Marker

from dct_vl.errors import ConfigError
from dct_vl.inputs.chat import read_chat_tokenizer
from dct_vl.model.families.qwen_vl.config import MODEL_TYPES, check_model_file, read_model_file
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.data_checks import check_data_path, check_splits
from dct_vl.shipped import shipped_folder

#: packages whose version decides whether anything works; the others are compared with a warning
DECISIVE = ("nemo-toolkit", "megatron-core", "megatron-energon", "transformers", "lightning")
TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "merges.txt", "preprocessor_config.json")
#: bytes a parameter of a checkpoint: bf16 weight, fp32 master weight and two fp32 Adam moments
CHECKPOINT_BYTES_PER_PARAMETER = 14


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the doctor's report."""

    status: str  #: "ok", "warn" or "FAIL"; a FAIL stops the run
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.status:<5}{self.what:<18}{self.detail}"


def examine(run: RunConfig | None = None, *, on_cpu: bool | None = None) -> bool:
    """Print all findings; True where nothing would stop the run.

    Args:
        run: a run's configuration; without it only the machine is examined.
        on_cpu: whether the run means to use the CPU; None finds it out.
    """
    findings = []
    for finding in _findings(run, on_cpu):
        print(finding, flush=True)
        findings.append(finding)
    return all(f.status != "FAIL" for f in findings)


def _findings(run: RunConfig | None, on_cpu: bool | None) -> Iterator[Finding]:
    yield check_python()
    yield from check_versions()
    yield from check_devices(on_cpu)
    if run is not None:
        yield check_data(run)
        yield from check_model(run.model.path)
        yield check_disk(run)
        if run.logger.wandb_project:
            yield check_wandb()


def _ok(what: str, detail: str) -> Finding:
    return Finding(status="ok", what=what, detail=detail)


def _fail(what: str, detail: str) -> Finding:
    return Finding(status="FAIL", what=what, detail=detail)


def check_python() -> Finding:
    """Python 3.10 to 3.12."""
    found = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return _ok("python", found)
    return _fail("python", f"{found}: use 3.10, 3.11 or 3.12 (NeMo 2.7.3 needs it)")


def check_versions(pins_file: Path | None = None) -> Iterator[Finding]:
    """Installed versions against the pins of constraints/: those for machines with CUDA, or not."""
    import torch

    name = "gpu.txt" if torch.cuda.is_available() else "cpu.txt"
    pins_file = pins_file or shipped_folder("constraints") / name
    pins = read_pins(pins_file)
    different = []
    for name, pin in pins.items():
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            found = "missing"
        if name in DECISIVE:
            fix = f"{found}, expected {pin}: pip install '{name}=={pin}'"
            yield _ok(name, found) if found == pin else _fail(name, fix)
        elif found != pin:
            different.append(f"{name} {found} (pinned {pin})")
    yield Finding(
        status="warn" if different else "ok",
        what="other packages",
        detail=", ".join(different) or f"{len(pins) - len(DECISIVE)} as pinned in {pins_file.name}",
    )


def read_pins(path: Path) -> dict[str, str]:
    """name → version of a constraints file, names in lower case with dashes.

    Lines whose marker excludes this Python are left out.
    """
    pins = {}
    for line in path.read_text().splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)==([^;\s]+)(?:\s*;\s*(.+))?", line)
        if match and (match[3] is None or Marker(match[3]).evaluate()):
            pins[match[1].lower().replace("_", "-")] = match[2]
    return pins


def check_devices(on_cpu: bool | None) -> Iterator[Finding]:
    """Torch, CUDA devices, NCCL and Transformer Engine."""
    import torch

    count = 0 if on_cpu else torch.cuda.device_count()
    if not count:
        found = f"{torch.__version__}, CPU"
        gloo = torch.distributed.is_gloo_available()
        yield _ok("torch", found) if gloo else _fail("torch", f"{found}: gloo is absent")
        return
    properties = torch.cuda.get_device_properties(0)
    memory = f"{properties.total_memory / 2**30:.0f} GiB each"
    yield _ok("torch", f"{torch.__version__}, {count} × {properties.name}, {memory}")
    if torch.distributed.is_nccl_available():
        yield _ok("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield _fail("NCCL", "absent: this torch cannot use several GPUs; install a CUDA build")
    yield _check_transformer_engine()


def _check_transformer_engine() -> Finding:
    from dct_vl.compat import have_transformer_engine
    from dct_vl.model.attention import have_cudnn_attention

    if have_transformer_engine():
        return _ok("TransformerEngine", f"{version('transformer_engine')}, used")
    package = "cuDNN's" if have_cudnn_attention() else "torch's flash"
    return Finding(
        status="warn",
        what="TransformerEngine",
        detail=f"absent: Megatron's local layers with {package} attention are used",
    )


def check_data(run: RunConfig) -> Finding:
    """Shards prepared for Energon, or a file of conversations, and what is validated on."""
    try:
        check_data_path(run.data.path)
        check_splits(run)
    except ConfigError as error:
        return _fail("data", str(error))
    return _ok("data", run.data.path)


def check_model(folder: str) -> Iterator[Finding]:
    """Weights and tokenizer files of a Hugging Face folder."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        yield _fail("model", f"{folder} has no config.json: clone Qwen/Qwen2-VL-2B-Instruct there")
        return
    yield _check_config(path)
    yield _check_weights(path)
    missing = [name for name in TOKENIZER_FILES if not (path / name).is_file()]
    if missing:
        yield _fail("tokenizer files", f"missing: {', '.join(missing)}; fetch them again")
        return
    yield _ok("tokenizer files", "all there")
    try:
        read_chat_tokenizer(path)
    except ConfigError as error:
        yield _fail("chat template", str(error))
    else:
        yield _ok("chat template", "shows an image")


def _check_config(path: Path) -> Finding:
    try:
        kind = (read_model_file(path) or {}).get("model_type")
        if kind not in MODEL_TYPES:
            expected = " or ".join(MODEL_TYPES)
            return _fail("model", f"{path} is a {kind}; expected {expected}")
        check_model_file(path)
    except ConfigError as error:
        return _fail("model", str(error))
    return _ok("model", MODEL_TYPES[kind])


def _check_weights(path: Path) -> Finding:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    problems = []
    for name in names:
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size < 1024:
            problems.append(f"{name} has {file.stat().st_size} bytes (a git-lfs pointer?)")
    if problems:
        return _fail("weights", f"{'; '.join(problems)}: run git lfs pull in {path}")
    return _ok("weights", f"{len(names)} files, {weights_size(path) / 2**30:.2f} GiB in {path}")


def weights_size(path: Path) -> int:
    """Bytes of all safetensors files of a folder."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def check_wandb() -> Finding:
    """The package of Weights & Biases, which is none of the required ones."""
    try:
        return _ok("wandb", version("wandb"))
    except PackageNotFoundError:
        fix = "not installed: python -m pip install wandb, or leave WANDB_PROJECT empty"
        return _fail("wandb", fix)


def check_disk(run: RunConfig) -> Finding:
    """Room for the checkpoints that a run keeps, and one more while it is written."""
    folder = Path(run.log_dir)
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written to" if existing.is_dir() else "is a file"
        return _fail("disk", f"{existing} {what}: set LOG_DIR elsewhere")
    free = shutil.disk_usage(existing).free
    # two bytes a parameter on disk is the hub's bf16; a float32 folder is overestimated
    one = weights_size(Path(run.model.path)) / 2 * CHECKPOINT_BYTES_PER_PARAMETER
    need = one * (run.trainer.keep_last + 1)
    gib = f"{free / 2**30:.0f} GiB free at {existing}, {need / 2**30:.1f} GiB needed"
    if free < one:
        return _fail("disk", f"{gib}: free some, or set LOG_DIR elsewhere")
    if free < need:
        fix = f"{gib}: lower trainer.keep_last or free some"
        return Finding(status="warn", what="disk", detail=fix)
    return _ok("disk", gib)
