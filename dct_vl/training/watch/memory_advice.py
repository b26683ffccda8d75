"""Settings that a run could have instead of its own, and the memory that each would save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from dct_vl.runs.checks import check_layout, check_model_layout
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.config.tuning import check_tuning, trained_parts
from dct_vl.runs.derived import RunSettings
from dct_vl.training.estimate.estimate import make_placement
from dct_vl.training.estimate.memory import GIB, BatchShape, stage_memory


@dataclass(frozen=True, kw_only=True)
class MemorySaving:
    """A change of one setting that lowers the peak memory."""

    #: as on the command line
    setting: str
    #: GiB, by the estimate of `dct_vl.training.estimate`
    saves: float
    #: of the unchanged run's estimate
    share: float
    #: a checkpoint of this run can resume with it
    resumes: bool


@dataclass(frozen=True, kw_only=True)
class _Change:
    setting: str
    run: RunConfig
    batch: BatchShape
    resumes: bool = False


def memory_savings(
    run: RunConfig, batch: BatchShape, world_size: int, *, on_cuda: bool
) -> list[MemorySaving]:
    """Changes that pass the checks of a run and save memory, those that cost least first.

    Args:
        batch: the micro batch that did not fit.
        on_cuda: the run trains on CUDA devices.

    Raises:
        ConfigError: the model's sizes are not known.
    """
    now = peak_gib(run, batch, world_size)
    found = []
    for change in _changes(run, batch, world_size, on_cuda=on_cuda):
        try:
            check_layout(change.run, world_size)
            check_model_layout(change.run)
            check_tuning(change.run)
            saves = now - peak_gib(change.run, change.batch, world_size)
        except ValueError:  # of the configuration, or the tokenizer's
            continue
        if saves > 0:
            found.append(
                MemorySaving(
                    setting=change.setting, saves=saves, share=saves / now, resumes=change.resumes
                )
            )
    return found


def peak_gib(run: RunConfig, batch: BatchShape, world_size: int) -> float:
    """Estimated peak of the fullest pipeline stage's GPUs, GiB."""
    division = check_layout(run, world_size)
    settings = RunSettings(run)
    placement = make_placement(settings, settings.sizes, division)
    return max(stage_memory(placement, batch, stage).peak for stage in range(placement.pp)) / GIB


def _changes(
    run: RunConfig, batch: BatchShape, world_size: int, *, on_cuda: bool
) -> Iterator[_Change]:
    trainer, data = run.trainer, run.data
    replicas = check_layout(run, world_size).data_parallel_size
    if on_cuda and not run.speed.recompute:
        changed = replace(run, speed=replace(run.speed, recompute=True))
        yield _Change(setting="speed.recompute=true", run=changed, batch=batch, resumes=True)
    if not trainer.distributed_optimizer and replicas > 1:
        changed = replace(run, trainer=replace(trainer, distributed_optimizer=True))
        yield _Change(setting="trainer.distributed_optimizer=true", run=changed, batch=batch)
    share = trainer.global_batch_size // replicas
    for rows in (n for n in range(trainer.micro_batch_size // 2, 0, -1) if share % n == 0):
        changed = replace(run, trainer=replace(trainer, micro_batch_size=rows))
        fewer = _of_rows(batch, rows)
        yield _Change(setting=f"trainer.micro_batch_size={rows}", run=changed, batch=fewer)
        break
    yield from _wider(run, batch, replicas)
    yield from _smaller_images(run, batch)
    unit = RunSettings(run).row_multiple
    length = batch.row_tokens // 2 // unit * unit
    if length:
        half = replace(batch, row_tokens=length, num_cells=batch.num_cells // 2)
        changed = replace(run, data=replace(data, seq_length=length))
        # without packing it decides only which samples are too long
        resumes = not data.packing
        name = f"data.seq_length={length}"
        yield _Change(setting=name, run=changed, batch=half, resumes=resumes)
    if run.model.tuning == "full" and "language" in trained_parts(run.model):
        changed = replace(run, model=replace(run.model, tuning="lora"))
        yield _Change(setting="model.tuning=lora", run=changed, batch=batch)


def _wider(run: RunConfig, batch: BatchShape, replicas: int) -> Iterator[_Change]:
    """Twice the tensor-parallel ranks, of half the replicas with as many loader processes."""
    trainer = run.trainer
    if replicas % 2:
        return
    size = 2 * trainer.tensor_parallel_size
    words = [f"trainer.tensor_parallel_size={size}"]
    if not trainer.sequence_parallel:
        words.append("trainer.sequence_parallel=true")
    workers = 2 * run.data.num_workers
    if workers:
        words.append(f"data.num_workers={workers}")
    changed = replace(
        run,
        trainer=replace(trainer, tensor_parallel_size=size, sequence_parallel=True),
        data=replace(run.data, num_workers=workers),
    )
    yield _Change(setting=" ".join(words), run=changed, batch=batch, resumes=workers > 0)


def _smaller_images(run: RunConfig, batch: BatchShape) -> Iterator[_Change]:
    data, cells = run.data, batch.num_cells
    if data.packing:
        # a pack is filled up again with more, smaller images
        limit = cells // batch.rows // 2
        if limit:
            changed = replace(run, data=replace(data, max_patches_per_pack=limit))
            half = replace(batch, num_cells=cells // 2)
            yield _Change(setting=f"data.max_patches_per_pack={limit}", run=changed, batch=half)
        return
    pixels = data.max_pixels // 2
    if cells and pixels >= data.min_pixels:
        changed = replace(run, data=replace(data, max_pixels=pixels))
        # 2 x 2 patches a token
        tokens = max(batch.row_tokens - cells // 8 // batch.rows, 1)
        if run.trainer.pipeline_parallel_size > 1:
            tokens = batch.row_tokens
        half = replace(batch, row_tokens=tokens, num_cells=cells // 2)
        yield _Change(setting=f"data.max_pixels={pixels}", run=changed, batch=half)


def _of_rows(batch: BatchShape, rows: int) -> BatchShape:
    share = rows / batch.rows
    return replace(
        batch,
        rows=rows,
        num_cells=round(share * batch.num_cells),
        num_answers=round(share * batch.num_answers),
    )
