"""Memory, time and tokens of a run's configuration under a stated workload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter

from dct_tokenizer import PlanError, TokenizerConfigError
from dct_tokenizer.cost import window_pairs
from dct_vl.errors import ConfigError
from dct_vl.runs.checks import Division, check_divisions, check_layout
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.config.tuning import check_tuning, trained_parts
from dct_vl.runs.derived import RunSettings
from dct_vl.runs.flops import StepWork
from dct_vl.runs.model_sizes import ModelSizes
from dct_vl.training.estimate.memory import GIB, BatchShape, Placement, StageMemory, stage_memory

#: share of a pack that samples fill
PACKED_SHARE = 0.97


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The typical sample, and the machine."""

    num_gpus: int
    #: height and width of an image before the resize, pixels
    picture: tuple[int, int]
    pictures_per_sample: int
    #: tokens of a sample that are not visual, and those of them that carry loss
    text_tokens: int
    answer_tokens: int
    #: dense bf16 FLOP/s of a GPU, and the share of it that is expected
    peak_flops: float
    mfu: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What comes out. Memory is of each GPU of a pipeline stage, first stage first."""

    data_parallel_size: int
    num_micro_batches: int
    cells_per_picture: int
    tokens_per_picture: int
    tokens_per_sample: int
    samples_per_step: float
    typical: BatchShape
    fullest: BatchShape
    typical_stages: tuple[StageMemory, ...]
    fullest_stages: tuple[StageMemory, ...]
    step_flops: float
    step_seconds: float

    @property
    def typical_peak_gib(self) -> float:
        """Peak of the fullest stage with micro batches of typical samples."""
        return max(stage.peak for stage in self.typical_stages) / GIB

    @property
    def fullest_peak_gib(self) -> float:
        """Peak of the fullest stage with the largest micro batch that the settings allow."""
        return max(stage.peak for stage in self.fullest_stages) / GIB

    @property
    def samples_per_second(self) -> float:
        return self.samples_per_step / self.step_seconds


def estimate(run: RunConfig, sizes: ModelSizes, work: Workload) -> Estimate:
    """Estimate a run.

    Raises:
        ConfigError: a layout that cannot work, also not with a model of these sizes, wrong settings
            of tokenizer or tuning, or a typical sample longer than data.seq_length.
    """
    division = check_layout(run, work.num_gpus)
    check_divisions(
        run,
        heads=sizes.shape.heads,
        groups=sizes.shape.kv_heads,
        layers=sizes.shape.llm_layers,
        vision_heads=None,
        vision_mlp=sizes.shape.vit_mlp,
    )
    check_tuning(run)
    settings = RunSettings(run)
    try:
        image = settings.visual.plan(*work.picture)
    except (TokenizerConfigError, PlanError) as error:
        raise ConfigError(f"tokenizer: {error}") from error
    cells = image.num_cells * work.pictures_per_sample
    tokens = image.num_llm_tokens * work.pictures_per_sample + work.text_tokens
    if tokens > run.data.seq_length:
        raise ConfigError(
            f"a sample of {tokens} tokens is longer than data.seq_length={run.data.seq_length} and "
            "would be skipped: raise it, or lower --text, --pictures or data.max_pixels"
        )
    per_row = PACKED_SHARE * run.data.seq_length / tokens if run.data.packing else 1.0
    if run.data.packing and cells:
        per_row = min(per_row, settings.max_patches_per_pack / cells)
    typical = _typical(settings, work, cells, tokens, per_row)
    fullest = _fullest(settings, work, image.num_cells, image.num_llm_tokens)
    placement = make_placement(settings, sizes, division)
    samples = run.trainer.global_batch_size * per_row
    per_step = samples * work.pictures_per_sample
    segments = (image.vit_cu_seqlens[1:] - image.vit_cu_seqlens[:-1]).astype(float)
    counter = settings.step_flops(sizes)
    step = StepWork(
        num_cells=samples * cells,
        cell_pairs=per_step * float((segments**2).sum()),
        window_pairs=per_step * window_pairs(image, sizes.shape),
        num_tokens=samples * tokens,
        token_pairs=samples * tokens**2,
        num_output_tokens=samples * work.answer_tokens,
    )
    flops = counter.of(step)
    # every context-parallel rank computes the whole vision tower
    again = counter.of(replace(step, num_tokens=0, token_pairs=0, num_output_tokens=0))
    computed = flops + (placement.cp - 1) * again
    seconds = computed / (work.peak_flops * work.mfu * work.num_gpus)
    # the forward pass once more; and the time in which stages wait for each other (1F1B)
    seconds *= 4 / 3 if placement.recompute else 1
    seconds *= 1 + (placement.pp - 1) / division.num_micro_batches
    typical_stages = tuple(stage_memory(placement, typical, stage) for stage in range(placement.pp))
    # short samples can have more answers than the fullest batch has beside its images
    fullest_stages = tuple(
        max(usual, stage_memory(placement, fullest, stage), key=attrgetter("peak"))
        for stage, usual in enumerate(typical_stages)
    )
    return Estimate(
        data_parallel_size=division.data_parallel_size,
        num_micro_batches=division.num_micro_batches,
        cells_per_picture=image.num_cells,
        tokens_per_picture=image.num_llm_tokens,
        tokens_per_sample=tokens,
        samples_per_step=samples,
        typical=typical,
        fullest=fullest,
        typical_stages=typical_stages,
        fullest_stages=fullest_stages,
        step_flops=flops,
        step_seconds=seconds,
    )


def make_placement(settings: RunSettings, sizes: ModelSizes, division: Division) -> Placement:
    """How a run's model lies on GPUs; switches left open are on, as they are with CUDA."""
    run, lora = settings.run, settings.lora
    trainer, speed = run.trainer, run.speed
    return Placement(
        sizes=sizes,
        front_end_parameters=sum(
            p.numel() for p in settings.visual.front_end(sizes.shape.vit_width).parameters()
        ),
        tp=trainer.tensor_parallel_size,
        pp=trainer.pipeline_parallel_size,
        dp=division.data_parallel_size,
        cp=trainer.context_parallel_size,
        sequence_parallel=trainer.sequence_parallel,
        distributed_optimizer=trainer.distributed_optimizer,
        num_micro_batches=division.num_micro_batches,
        half_precision=run.model.dtype != "fp32",
        fused_layers=speed.fused_layers is not False and run.model.layer_spec != "te",
        answer_loss=speed.answer_loss is not False,
        fused_optimizer=speed.fused_optimizer is not False,
        recompute=speed.recompute,
        trained=frozenset(trained_parts(run.model)),
        adapters=sizes.adapters(lora) if lora else (0, 0),
        adapted_fc2=sizes.adapted_fc2(lora) if lora else (0, 0),
    )


def _typical(
    settings: RunSettings, work: Workload, cells: int, tokens: int, per_row: float
) -> BatchShape:
    rows, multiple = settings.run.trainer.micro_batch_size, settings.row_multiple
    return BatchShape(
        rows=rows,
        row_tokens=settings.run.data.seq_length
        if settings.has_fixed_rows
        else -(-tokens // multiple) * multiple,
        num_cells=round(rows * per_row * cells),
        num_answers=round(rows * per_row * work.answer_tokens),
    )


def _fullest(settings: RunSettings, work: Workload, cells: int, tokens: int) -> BatchShape:
    """Rows of seq_length tokens, as full of images as one sample's text leaves room for."""
    run = settings.run
    rows, length = run.trainer.micro_batch_size, run.data.seq_length
    images = (length - work.text_tokens) / tokens
    if not run.data.packing:
        images = int(images)
    row_cells = images * cells
    if run.data.packing:
        row_cells = min(row_cells, settings.max_patches_per_pack)
    return BatchShape(
        rows=rows,
        row_tokens=length,
        num_cells=round(rows * row_cells),
        # answers can be all text that is left beside the fewest images
        num_answers=rows * max(work.answer_tokens, length - int(images) * tokens),
    )
