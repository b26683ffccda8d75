"""The schema of a run. Every key of the command line stands here with its meaning and unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dct_vl.model.parts import LoraConfig


@dataclass
class ModelConfig:
    """Which model, from where, and what of it is trained."""

    #: Hugging Face folder of a Qwen2-VL or Qwen2.5-VL; "auto" and "auto25" make tiny random ones of
    #: these below `cache_dir`
    path: str = MISSING
    #: auto | te | local | hybrid (local layers around Transformer Engine's attention)
    layer_spec: str = "auto"
    #: auto (bf16 on CUDA, fp32 on the CPU) | bf16 | fp32
    dtype: str = "auto"
    #: full | tokenizer_only (the tokenizer's front end and the projector) | lora
    tuning: str = "full"
    #: with tuning=full: parts that stay as they are; the vision model's include its front end
    freeze_language_model: bool = False
    freeze_vision_model: bool = False
    freeze_vision_projection: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    #: where generated models are kept
    cache_dir: str = "outputs/models"


@dataclass
class SpeedConfig:
    """Faster ways to the same numbers. null is on with CUDA and off without."""

    #: elementwise parts of a layer in one kernel each (local layer spec)
    fused_layers: bool | None = None
    #: those kernels, and the loss's, through torch.compile
    compile: bool | None = None
    #: logits only for the tokens that carry loss, in chunks
    answer_loss: bool | None = None
    #: AdamW, gradient norm and clipping in a few kernels where Transformer Engine's are absent
    fused_optimizer: bool | None = None
    #: cuDNN's attention in packs (local layer spec); null is on where the package
    #: nvidia-cudnn-frontend is installed and the GPU is a Hopper
    cudnn_attention: bool | None = None
    #: compute activations again in the backward pass: a third slower, a fraction of the memory
    recompute: bool = False


@dataclass
class DataConfig:
    """The shards and how samples become batches."""

    #: folder prepared by Energon (it holds .nv-meta), a metadataset YAML, or a .jsonl file of
    #: conversations with its media beside it, all of which is trained on
    path: str = MISSING
    #: where validation reads instead: the file of held-out conversations beside a .jsonl
    val_path: str | None = None
    #: longest sample in tokens; longer ones are skipped and counted
    seq_length: int = 2048
    #: bounds of a resized image's area in pixels
    min_pixels: int = 784
    max_pixels: int = 43904
    #: frames taken of a second of video, and bounds of their number; fewer where the sample would
    #: be longer than seq_length, though never less than video_min_frames
    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    #: bounds of a resized frame's area in pixels (Qwen2-VL: 128 to 768 tokens of 28 x 28)
    video_min_pixels: int = 100352
    video_max_pixels: int = 602112
    #: area of all frames of a video in pixels, a pair counted once, which lowers their size as far
    #: as 1.05 x video_min_pixels; null is what 0.9 x seq_length stock tokens show
    video_total_pixels: int | None = None
    #: loader processes a rank; 0 loads in the trainer itself
    num_workers: int = 2
    #: samples, of each loader process; 0 keeps the order of the shards
    shuffle_buffer_size: int = 1000
    #: false: a loader process delivers each sample of its share once before any twice, as its
    #: buffers are emptied at the end of an epoch. true: they draw from the next epoch already.
    #: null is what the checkpoint has that the run resumes from, and false without one
    mix_epochs: bool | None = None
    #: samples that are read in sequence from one place of a shard; smaller shuffles better
    max_samples_per_sequence: int = 100
    #: several samples a row, in packs of exactly seq_length tokens; batch sizes then count packs.
    #: Off: one sample a row. Validation always has one sample a row
    packing: bool = False
    #: samples that packs are chosen from, of each loader process; more pack tighter, and use memory
    packing_buffer_size: int = 512
    #: most ViT patches in a pack; null is 4 × seq_length, what seq_length visual tokens take where
    #: each is made of 2 × 2 patches
    max_patches_per_pack: int | None = None
    #: seconds without a batch after which a loader process counts as stuck; 0 waits for ever
    worker_timeout_s: float = 600.0
    #: consecutive rejected samples of one loader process that stop the run
    max_rejects_in_a_row: int = 100

    def path_of(self, split: str) -> str:
        """Where the samples of a split are; a ValueError where there can be none."""
        if split == "val" and self.val_path is not None:
            return self.val_path
        if split != "train" and self.path.endswith(".jsonl"):
            raise ValueError(
                f"{self.path} is all to train on and has no {split} split: set data.val_path to a "
                "file to validate on, or trainer.val_every=0"
            )
        return self.path


@dataclass
class TrainerConfig:
    """Steps, batch sizes and the parallel layout."""

    max_steps: int = 1000
    micro_batch_size: int = 1
    global_batch_size: int = 4
    #: auto | cpu | gpu
    accelerator: str = "auto"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    #: ranks that each sequence is divided over, in the language model; they divide its heads too
    context_parallel_size: int = 1
    sequence_parallel: bool = False
    #: shard the optimizer state over data-parallel ranks (CUDA only)
    distributed_optimizer: bool = True
    #: steps between validations; 0 never validates
    val_every: int = 500
    #: micro batches of one validation on each data-parallel rank, always the same ones; rounded up
    #: to a multiple of what a step has, GBS / (MBS × data-parallel ranks)
    val_batches: int = 10
    #: steps between checkpoints; 0 saves at the end only, -1 never
    save_every: int = 500
    #: write checkpoints from a copy in host memory while training goes on; one at a time
    async_save: bool = False
    #: newest checkpoints that are kept
    keep_last: int = 2
    #: checkpoints of lowest validation loss that are kept besides; needs one at every validation
    keep_best: int = 0
    #: auto (from the newest checkpoint of the run, if any) | never | a checkpoint's folder
    resume: str = "auto"
    log_every: int = 1
    #: where a step's loss or gradients are not finite, or its loss is a spike: stop (the run ends
    #: before the update) | skip (the update is left out; ten in a row stop the run) | ignore
    on_bad_loss: str = "stop"
    #: a loss above this many times the median of the last 100 is a spike; 0 looks for none
    spike_factor: float = 0.0
    #: seconds without progress after which the ranks that the others wait for are named; 0 never
    stall_warning_s: float = 300.0
    #: stop after this step, although the schedule runs to max_steps; null runs to the end
    stop_at_step: int | None = None


@dataclass
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-5
    #: learning rates of single parts; null is `lr`. The schedule scales all of them alike, the
    #: floor included
    lr_front_end: float | None = None
    lr_vision: float | None = None
    lr_projector: float | None = None
    lr_language: float | None = None
    #: floor of the cosine schedule
    min_lr: float = 1e-6
    warmup_steps: int = 50
    #: not applied to biases and norms
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    #: global gradient norm; 0 does not clip
    clip_grad: float = 1.0


@dataclass
class LoggerConfig:
    """Where figures go besides the run's own files."""

    tensorboard: bool = True
    #: Weights & Biases project; null does not use it
    wandb_project: str | None = None


@dataclass
class RunConfig:
    """One training run."""

    experiment_name: str = "default"
    #: the run's folder is LOG_DIR/experiment_name
    log_dir: str = "outputs/runs"
    seed: int = 1234
    #: flat mapping of a preset of `dct_tokenizer`, with changes
    tokenizer: dict[str, Any] = MISSING
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
