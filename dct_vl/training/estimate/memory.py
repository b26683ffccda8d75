"""Peak memory of a GPU, by what it holds. Counts what torch's allocator counts; the CUDA context,
NCCL's buffers and fragmentation come on top.

Bytes a parameter on a tensor- and pipeline-parallel rank (bf16):

    weight                 2
    gradient               4         float32 sums over micro batches; of trained weights only
    optimizer state       12 / n     float32 master weight and AdamW's two moments, divided over the
                                     n = dp · cp ranks with the same weights by Megatron's
                                     distributed optimizer
    optimizer's passes     4 / n     only while it steps, and only with speed.fused_optimizer=false:
                                     torch's AdamW in several passes makes a copy of a moment

Bytes a layer keeps of a row for its backward pass (bf16; E width, Q and K widths of all query and
key heads, F width of the MLP; t is the tensor-parallel size):

    what norms take and give, 4 times            8 E     (/ t with sequence parallelism)
    query, key, value, context                   (4 Q + 4 K) / t
      its second layout, in the language model   2 Q / t
    MLP, fused layers: fc1's output              2 F / t; gated 4 F / t
      under an adapter: fc2's input as well      2 F / t more
    MLP, other layers: that, and the sigmoid     4 F / t more
    other layers of the language model: the product before its division, the rotation
                                                 (2 Q + 2 K) / t more

Flash attention keeps no scores. With recomputation a layer keeps its input (2 E) and one layer at
a time has all of it. Towers that no gradient passes through keep nothing. A context-parallel rank
keeps its part of the language model's rows and all of the ViT's; the answers may all lie in one
part. A pipeline stage holds the activations of as many micro batches as there are stages from it to
the last (1F1B). The loss takes, where it peaks, either 6 bytes a logit of every token (Megatron's
cross-entropy: bf16 and float32) or, with speed.answer_loss, bf16 logits of the tokens that carry
loss, kept up to 2 GiB, and the gradient of one chunk; and, Megatron's, the gradient of the output
layer, which speed.answer_loss adds straight to its sum.

The counts are those of autograd (a test); tests/unit/training/measured_peaks.json holds what peaks
were checked against.
"""

from __future__ import annotations

from dataclasses import dataclass

from dct_vl.model.fused.linear_cross_entropy import CHUNK, KEEP_BYTES
from dct_vl.runs.model_sizes import ModelSizes

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What a forward pass takes in, padding included."""

    rows: int
    row_tokens: int
    num_cells: int
    #: tokens that carry loss
    num_answers: int

    @property
    def num_tokens(self) -> int:
        return self.rows * self.row_tokens


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How the model lies on the GPUs and what of it is trained."""

    sizes: ModelSizes
    front_end_parameters: int
    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    sequence_parallel: bool = False
    distributed_optimizer: bool = True
    num_micro_batches: int = 1
    half_precision: bool = True
    fused_layers: bool = True
    answer_loss: bool = True
    fused_optimizer: bool = True
    recompute: bool = False
    trained: frozenset[str] = frozenset(("front_end", "vision", "projector", "language"))
    #: parameters of the adapters of a ViT layer and of a layer of the language model, on average
    adapters: tuple[float, float] = (0, 0)
    #: share of the layers of either whose MLP has one at its second product
    adapted_fc2: tuple[float, float] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class StageMemory:
    """Bytes on each GPU of a pipeline stage."""

    weights: float
    gradients: float
    optimizer: float
    vit_activations: float
    llm_activations: float
    #: logits, loss and the largest buffers of a backward pass
    loss_and_buffers: float
    #: what the optimizer takes while it steps, when the activations are gone
    optimizer_passes: float

    @property
    def peak(self) -> float:
        fixed = self.weights + self.gradients + self.optimizer
        passing = self.vit_activations + self.llm_activations + self.loss_and_buffers
        return fixed + max(passing, self.optimizer_passes)


def stage_memory(placement: Placement, batch: BatchShape, stage: int) -> StageMemory:
    """Memory of the GPUs of pipeline stage `stage` (0 holds the ViT)."""
    element = 2 if placement.half_precision else 4
    held, trained = stage_parameters(placement, stage)
    shards = placement.dp * placement.cp if placement.distributed_optimizer else 1
    in_flight = min(placement.num_micro_batches, placement.pp - stage)
    vit, llm, buffers = _activations(placement, batch, stage)
    return StageMemory(
        weights=element * held,
        gradients=4 * trained,
        # float32 parameters are their own master weights
        optimizer=(12 if placement.half_precision else 8) * trained / shards,
        vit_activations=vit * in_flight,
        llm_activations=llm * in_flight,
        loss_and_buffers=buffers,
        optimizer_passes=0 if placement.fused_optimizer else 4 * trained / shards,
    )


def stage_parameters(placement: Placement, stage: int) -> tuple[float, float]:
    """Parameters on one rank of a stage, and those of them that are trained."""
    sizes, tp = placement.sizes, placement.tp
    layers = sizes.shape.llm_layers / placement.pp
    last = stage == placement.pp - 1
    # a tied output layer on another stage than the embedding is a copy
    tables = (stage == 0) + (last and not (sizes.tied and placement.pp == 1))
    parts = {"language": (layers * sizes.llm_layer + tables * sizes.words) / tp}
    added = layers * placement.adapters[1] / tp
    if stage == 0:
        parts["vision"] = sizes.shape.vit_layers * sizes.vit_layer / tp
        parts["projector"] = sizes.projector / tp
        parts["front_end"] = placement.front_end_parameters
        added += sizes.shape.vit_layers * placement.adapters[0] / tp
    trained = sum(count for part, count in parts.items() if part in placement.trained)
    return sum(parts.values()) + added, trained + added


def _activations(placement: Placement, batch: BatchShape, stage: int) -> tuple[float, float, float]:
    """Bytes of one micro batch: in the ViT, in the language model, and while the loss or a layer
    is at work.
    """
    sizes, shape, tp = placement.sizes, placement.sizes.shape, placement.tp
    scale = 1 if placement.half_precision else 2
    vit_row = layer_bytes(
        width=shape.vit_width,
        queries=shape.vit_width,
        keys=shape.vit_width,
        mlp=shape.vit_mlp,
        gated=shape.vit_gated,
        is_vision=True,
        fused=placement.fused_layers,
        adapted=placement.adapted_fc2[0],
        tp=tp,
    )
    llm_row = layer_bytes(
        width=shape.llm_width,
        queries=sizes.query_width,
        keys=sizes.key_width,
        mlp=shape.llm_mlp,
        gated=True,
        is_vision=False,
        fused=placement.fused_layers,
        adapted=placement.adapted_fc2[1],
        tp=tp,
        sequence_parallel=placement.sequence_parallel,
    )
    spread = tp if placement.sequence_parallel else 1
    kept_vit = 2 * shape.vit_width if placement.recompute else vit_row
    kept_llm = 2 * shape.llm_width / spread if placement.recompute else llm_row

    has_vit_adapters, has_llm_adapters = (count > 0 for count in placement.adapters)
    through_vit = bool({"front_end", "vision"} & placement.trained) or has_vit_adapters
    trains_llm = bool({"projector", "language"} & placement.trained)
    through_llm = through_vit or has_llm_adapters or trains_llm
    vit = llm = buffers = 0.0
    if stage == 0:
        # the front end's float32 input, the merger's rows: a few widths beside the layers
        vit_ends = 12 * shape.vit_width
        vit = batch.num_cells * (vit_ends + through_vit * shape.vit_layers * kept_vit)
        buffers = batch.num_cells * vit_row
    tokens = batch.num_tokens / placement.cp
    if through_llm:
        ends = 6 * shape.llm_width / spread
        llm = tokens * (ends + shape.llm_layers / placement.pp * kept_llm)
        buffers = max(buffers, tokens * llm_row)
    if stage == placement.pp - 1:
        answers = min(batch.num_answers, tokens)
        buffers = max(buffers, _loss_bytes(placement, tokens, answers) / scale)
    return vit * scale, llm * scale, buffers * scale


def layer_bytes(
    *,
    width: int,
    queries: int,
    keys: int,
    mlp: int,
    gated: bool,
    is_vision: bool,
    fused: bool,
    adapted: float = 0.0,
    tp: int = 1,
    sequence_parallel: bool = False,
) -> float:
    """bf16 bytes that a transformer layer keeps of one row; see the module's table.

    Args:
        queries: width of all query heads.
        keys: width of all key heads.
        mlp: inner width, of one half where it is gated.
        gated: gate and up in one matrix.
        is_vision: a layer of the ViT, whose rows are one batch row.
        fused: elementwise parts of `dct_vl.model.fused`; otherwise Megatron's or Transformer
            Engine's.
        adapted: the MLP's second product has an adapter, which keeps its input; on average over
            the layers.
        sequence_parallel: norms see a part of the sequence.
    """
    norms: float = 8 * width / (tp if sequence_parallel else 1)
    attention = (4 if is_vision else 6) * queries + 4 * keys
    inner: float = (4 if gated else 2) * mlp
    inner += 2 * mlp * adapted if fused else 4 * mlp
    if not fused:
        attention += 0 if is_vision else 2 * queries + 2 * keys
    return norms + (attention + inner) / tp


def _loss_bytes(placement: Placement, tokens: float, answers: float) -> float:
    element = 2 if placement.half_precision else 4
    words = placement.sizes.vocab_size / placement.tp
    trains = "language" in placement.trained
    if not placement.answer_loss:
        weight_gradient: float = trains * element * words * placement.sizes.shape.llm_width
        return (element + 4) * tokens * words + weight_gradient
    all_logits = element * answers * words
    chunk = element * min(answers, CHUNK) * words
    return (all_logits if all_logits <= KEEP_BYTES else chunk) + chunk
