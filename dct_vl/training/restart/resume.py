"""Which checkpoint a run resumes from, whether it may, and whether it has finished already."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from data_prep.remote import folder_at
from dct_vl.compat import activate

activate()

from dct_vl.errors import ConfigError  # noqa: E402
from dct_vl.runs.checkpoint_files import (  # noqa: E402
    checkpoint_step,
    find_fault,
    list_checkpoints,
    newest_intact,
    read_meta,
)
from dct_vl.runs.config.schema import RunConfig  # noqa: E402
from dct_vl.runs.config.tuning import tuning_settings  # noqa: E402
from dct_vl.runs.derived import RunSettings  # noqa: E402
from dct_vl.runs.run_files import CONFIG_NAME, read_config  # noqa: E402
from dct_vl.training.restart.loader_state import check_streams  # noqa: E402

_MIX_EPOCHS = "data.mix_epochs"
#: settings that may differ: they say where a run begins and lies, not what it computes, or are
#: compared with what the checkpoint says
_NOT_COMPARED = ("trainer.resume", "log_dir", _MIX_EPOCHS)


class RunFinished(Exception):
    """A finished run was started again with the same settings."""

    def __init__(self, folder: Path, step: int, setting: str) -> None:
        super().__init__(
            f"{folder} is finished at step {step}, nothing is left to do: raise {setting} to go "
            "on, or use another experiment_name to begin anew"
        )


def find_resume(run: RunConfig, folder: Path, data_parallel_size: int = 1) -> Path | None:
    """The checkpoint to resume from: of this run's, the newest one without a fault.

    Raises:
        RunFinished: the run has done its last step, and its settings are unchanged.
        ConfigError: the run's folder already holds another run, or the checkpoint was made with
            other settings that decide its sample stream, or lies at or beyond the last step of
            other settings, or is damaged and there is none before it.
    """
    path = _choose(run.trainer.resume, folder)
    if path is None:
        return None
    run = with_epochs_of(run, path)
    meta = {_MIX_EPOCHS: _mixes_epochs(path), **read_meta(path)}
    tuned = meta.get("tuning", {})
    shared = {name: value for name, value in tensor_settings(run).items() if name in tuned}
    for name, value in {**stream_settings(run), **shared}.items():
        if (before := {**meta, **tuned}.get(name)) != value:
            raise ConfigError(
                f"{path} was trained with {name} = {before}, this run has {value}: set it "
                "back, or use another experiment_name"
            )
    if "data_parallel_size" in meta:
        check_streams(
            ranks_before=meta["data_parallel_size"],
            workers_before=meta["data.num_workers"],
            num_ranks=data_parallel_size,
            num_workers=run.data.num_workers,
        )
    last = RunSettings(run).last_step
    if meta["step"] < last:
        return path
    ends = "trainer.max_steps" if last == run.trainer.max_steps else "trainer.stop_at_step"
    changed = changed_settings(run, folder) if is_own(path, folder) else []
    if meta["step"] == last and is_own(path, folder) and not changed:
        raise RunFinished(folder, last, ends)
    differs = f" (other than at its latest start: {'; '.join(changed)})" if changed else ""
    raise ConfigError(
        f"{path} is at step {meta['step']} already and this run ends at {last}: raise {ends}, or "
        f"use another experiment_name{differs}"
    )


def with_epochs_of(run: RunConfig, checkpoint: Path | None) -> RunConfig:
    """The run with `data.mix_epochs`, where its settings leave that open, as the checkpoint has it
    that it resumes from: the loaders of the two ways have no state in common.
    """
    if run.data.mix_epochs is not None:
        return run
    mixes = checkpoint is not None and _mixes_epochs(checkpoint)
    return replace(run, data=replace(run.data, mix_epochs=mixes))


def _mixes_epochs(checkpoint: Path) -> bool:
    # checkpoints that do not say are of a time when all runs did
    return bool(read_meta(checkpoint).get(_MIX_EPOCHS, True))


def _choose(wanted: str, folder: Path) -> Path | None:
    if wanted == "auto":
        return _newest_intact(folder)
    held = list_checkpoints(folder)
    path = None if wanted == "never" else Path(wanted)
    if path is None or not is_own(path, folder):
        if path is not None and held and _began_at(folder) == _identity(path) is not None:
            # the same command again, as after a preemption
            return _newest_intact(folder)
        if held:
            raise ConfigError(
                f"{folder} already holds a run, at step {checkpoint_step(held[-1])}: use another "
                "experiment_name, remove the folder, or go on from it with trainer.resume=auto"
            )
    elif held and path.resolve() != held[-1].resolve():
        raise ConfigError(
            f"{folder} holds later steps than {path}: go on from it under another experiment_name, "
            "or from the newest one with trainer.resume=auto"
        )
    if path is not None and (fault := find_fault(path)):
        raise ConfigError(f"trainer.resume={path}: {fault}")
    return path


def _newest_intact(folder: Path) -> Path | None:
    sound = newest_intact(folder)
    faults = "; ".join(f"{path.name} is damaged: {fault}" for path, fault in sound.damaged)
    if faults and sound.path is None:
        raise ConfigError(
            f"no checkpoint of {folder} can be gone on from ({faults}): use another "
            "experiment_name, or remove the folder"
        )
    if faults and sound.path and os.environ.get("RANK", "0") == "0":
        print(f"warning: {faults}; going on from {sound.path.name}", file=sys.stderr)
    return sound.path


def began_at(resume: Path | None, folder: Path) -> str | None:
    """Identity of another run's checkpoint that the run in `folder` began at; None without one.
    `resume` is the checkpoint to resume from, of either run.
    """
    if resume is None:
        return None
    return read_meta(resume).get("began_at") if is_own(resume, folder) else _identity(resume)


def is_own(checkpoint: Path, folder: Path) -> bool:
    """Is a checkpoint one of the run in `folder`?"""
    return checkpoint.resolve().parent.parent == folder.resolve()


def _began_at(folder: Path) -> str | None:
    return began_at(newest_intact(folder).path, folder)


def _identity(checkpoint: Path) -> str | None:
    try:
        identity: str | None = read_meta(checkpoint).get("id")
    except ValueError:
        return None
    return identity


def stream_settings(run: RunConfig) -> dict[str, object]:
    """What a resumed run must share with the one before, to resume with the very next sample."""
    return {
        "tokenizer": run.tokenizer,
        "data": data_fingerprint(run.data.path),
        "data.min_pixels": run.data.min_pixels,
        "data.max_pixels": run.data.max_pixels,
        "data.video": asdict(RunSettings(run).video_rules),
        "data.shuffle_buffer_size": run.data.shuffle_buffer_size,
        _MIX_EPOCHS: bool(run.data.mix_epochs),
        "data.max_samples_per_sequence": run.data.max_samples_per_sequence,
        "data.packing": packing_settings(run),
        "trainer.micro_batch_size": run.trainer.micro_batch_size,
        "trainer.global_batch_size": run.trainer.global_batch_size,
        "seed": run.seed,
    }


def tensor_settings(run: RunConfig) -> dict[str, object]:
    """What decides which tensors a checkpoint has; a resumed run shares it where both say it."""
    settings = dict(tuning_settings(run))
    try:
        sizes = asdict(RunSettings(run).sizes)
    except (ConfigError, OSError, ValueError):
        return settings  # no folder of a model, which is said elsewhere
    shape = {**sizes.pop("shape"), **sizes, "name": None}
    known = {name: value for name, value in shape.items() if value is not None}
    return {**settings, "a model of the sizes": known}


def packing_settings(run: RunConfig) -> dict[str, int] | None:
    """What decides which samples share a row; None without packing."""
    if not run.data.packing:
        return None
    return {
        "seq_length": run.data.seq_length,
        "packing_buffer_size": run.data.packing_buffer_size,
        "max_patches_per_pack": RunSettings(run).max_patches_per_pack,
    }


def data_fingerprint(path: str) -> str:
    """Short hash of what Energon knows of a dataset: its shards, their samples and the split.

    It stays the same when the folder is moved.
    """
    where = folder_at(path)
    names = (".nv-meta/.info.json", ".nv-meta/split.yaml")
    digest = hashlib.sha256()
    for file in [where / name for name in names] if where.is_dir() else [where]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def changed_settings(run: RunConfig, folder: Path) -> list[str]:
    """Settings in which a start differs from the latest one in `folder`, such as "optim.lr 0.1
    instead of 0.2"; nothing where there are none.
    """
    try:
        before = dict(_leaves(asdict(read_config(folder))))
    except ValueError:
        return [f"what {CONFIG_NAME} says, which is missing or damaged"]
    now = dict(_leaves(asdict(run)))
    return [
        f"{name} {now.get(name)} instead of {before.get(name)}"
        for name in dict.fromkeys((*now, *before))
        if name not in _NOT_COMPARED and now.get(name) != before.get(name)
    ]


def _leaves(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
