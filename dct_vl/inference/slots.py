"""Answer prompts token by token, in slots that are filled again as soon as an answer ends.

A step asks the model for one token of every slot. What it needs lies in tensors that never move,
so that on a CUDA device a whole step, the choice of its tokens included, is one graph.

Shape legend: N slots, n the first of them that a step is made for, C places a slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import psutil
import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps

from dct_vl.inference.asked import Asked, Decoded, Queue
from dct_vl.inference.decode import StepGraphs, agree, cut_at, for_logits, staged_forward
from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.sampling import Sampling, choose, draws_of
from dct_vl.inputs.batch import Batch, pack_batch
from dct_vl.model.kv_cache import SlotCache


@dataclass(kw_only=True)
class _Answer:
    """An answer as it grows."""

    number: int
    asked: Asked
    slot: int
    #: tokens kept in the slot, known without asking the device
    num_kept: int
    tokens: list[int] = field(default_factory=list)
    is_finished: bool = False
    is_closed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """Tokens on their way from the device."""

    #: (rows,) int64 on the host, of the rows' answers
    tokens: torch.Tensor
    answers: Sequence[_Answer | None]
    #: when they are there; None where they are
    event: torch.cuda.Event | None

    def pairs(self) -> Iterator[tuple[_Answer, int]]:
        if self.event is not None:
            self.event.synchronize()
        for answer, token in zip(self.answers, self.tokens.tolist(), strict=True):
            # the step after an answer's end has run along before the end was known
            if answer is not None and not answer.is_closed:
                yield answer, token


#: tokens of prompts in one forward pass; without a kernel for segments its cost is their square
_PROMPT_TOKENS = {"cuda": 16384, "cpu": 512}


class SlotDecoder:
    """Slots, and what they do next. All ranks of a model do the same at the same time.

    Args:
        model: this process's part of it.
        sampling: how tokens are chosen.
        num_slots: answers that are made at the same time.
        wanted_slots: as many were asked for, if there is not memory for all.
        capacity: `Asked.num_places` of the longest.
    """

    def __init__(
        self,
        model: LoadedModel,
        sampling: Sampling,
        *,
        num_slots: int,
        capacity: int,
        wanted_slots: int | None = None,
    ) -> None:
        self.wanted_slots = wanted_slots or num_slots
        self.model = model
        self.sampling = sampling
        self.cache = SlotCache(num_slots, capacity, model.device)
        self._answers: list[_Answer | None] = [None] * num_slots
        self._failed: list[tuple[int, Asked, ValueError]] = []
        self._rows = torch.arange(num_slots, device=model.device)
        #: (N,) int64 each: the newest token, its position, and how many an answer has
        self._ids, self._positions, self._num_chosen = torch.zeros(
            3, num_slots, dtype=torch.int64, device=model.device
        )
        #: (N, C) float64, see `draws_of`
        width = capacity if sampling.temperature else 1
        self._draws = torch.zeros(num_slots, width, dtype=torch.float64, device=model.device)
        on_cuda = model.device.type == "cuda"
        self._is_whole = dist.get_world_size(ps.get_model_parallel_group()) == 1
        self._graphs = StepGraphs() if on_cuda and self._is_whole else None
        self._most_tokens = _PROMPT_TOKENS[model.device.type]
        # one step runs while the tokens of the one before are looked at
        self._num_ahead = 1 if on_cuda else 0

    @torch.inference_mode()
    def answer(
        self,
        waiting: Queue,
        stop: Sequence[str] = (),
        watch: Callable[[Sequence[int]], None] | None = None,
    ) -> Iterator[tuple[int, Asked, Decoded | ValueError]]:
        """Answer what waits, up to the first that needs more places than a slot has: its number,
        it, and the answer or why there is none, as answers end.

        Args:
            waiting: read when slots are free.
            stop: an answer ends with the first of these texts.
            watch: called after each step with the tokens of answer 0 so far; what it raises ends
                all of them.
        """
        chosen: deque[_Chosen] = deque()
        try:
            while True:
                read = list(self._admit(waiting))
                failed, self._failed = self._failed, []
                yield from failed
                chosen.extend(read)
                if not self._num_ahead:
                    yield from self._take(chosen, 0, stop, watch)
                num_rows = self._num_rows()
                if num_rows:
                    chosen.append(self._next(num_rows))
                yield from self._take(chosen, self._num_ahead if num_rows else 0, stop, watch)
                if not (num_rows or read or failed):
                    return
        finally:
            self._answers = [None] * len(self._answers)

    def _admit(self, waiting: Queue) -> Iterator[_Chosen]:
        """Fill free slots, once there are enough of them for a pass over prompts to be worth it."""
        free = [slot for slot, answer in enumerate(self._answers) if answer is None]
        num_slots = len(self._answers)
        if len(free) < num_slots and len(free) * _REFILL < num_slots:
            return
        chunk: list[_Answer] = []
        for slot in free:
            first = waiting.first()
            if first is None or first[1].num_places > self.cache.capacity:
                break
            waiting.pop()
            number, asked = first
            length = len(asked.prompt.input_ids)
            if chunk and sum(one.num_kept for one in chunk) + length > self._most_tokens:
                yield from self._read(chunk)
                chunk = []
            answer = _Answer(number=number, asked=asked, slot=slot, num_kept=length)
            self._answers[slot] = answer
            chunk.append(answer)
        if chunk:
            yield from self._read(chunk)

    def _read(self, answers: Sequence[_Answer]) -> Iterator[_Chosen]:
        """Run prompts into their slots; fewer at once where the memory is not enough for all.

        One alone that is too much is answered with an error. Where the model is divided, ranks
        cannot know of each other's shortage, and it ends them all.
        """
        try:
            yield self._read_together(answers)
            return
        except torch.OutOfMemoryError as error:
            if not self._is_whole:
                raise
            shortage = str(error).partition(". ")[0]
        # behind the exception, which holds what the pass had made
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(answers) == 1:
            self._fail(answers[0], f"the prompt is too much for the memory: {shortage}")
            return
        self._most_tokens = sum(answer.num_kept for answer in answers) // 2
        half = len(answers) // 2
        for part in (answers[:half], answers[half:]):
            yield from self._read(part)

    def _fail(self, answer: _Answer, reason: str) -> None:
        self._answers[answer.slot] = None
        answer.is_closed = True
        self._failed.append((answer.number, answer.asked, ValueError(reason)))

    def _read_together(self, answers: Sequence[_Answer]) -> _Chosen:
        """Run prompts, in one row, into their slots; each one's first token."""
        prompts = [answer.asked.prompt for answer in answers]
        following = [int(prompt.position_ids.max()) + 1 for prompt in prompts]
        device = self.model.device
        slots = torch.tensor([answer.slot for answer in answers], device=device)
        if self.sampling.temperature:
            for answer in answers:
                draws = draws_of(self.sampling, answer.asked.prompt.__key__, answer.asked.limit)
                self._draws[answer.slot, : len(draws)] = draws.to(device)
        length = sum(answer.num_kept for answer in answers)
        packed = pack_batch([prompts], visual=self.model.visual, length=length)
        batch = for_logits(self.model, packed)
        assert batch.segments is not None
        self.cache.begin_prompts(slots, batch.segments, length)
        ends = batch.segments.cu_seqlens[1:].to(torch.int64) - 1
        batch = replace(batch, answer_indices=ends)
        try:
            logits = staged_forward(self.model.module, batch, self.cache)
        finally:
            self.cache.end_prompts()
        self._positions[slots] = torch.tensor(following, device=device)
        self._num_chosen[slots] = 0
        self._choose(logits, slots)
        return self._on_way(self._ids[slots], answers)

    def _num_rows(self) -> int:
        """The first slots, as far as there is an answer; on a device a number that graphs share."""
        active = [slot + 1 for slot, answer in enumerate(self._answers) if answer is not None]
        if not active or self.model.device.type != "cuda":
            return max(active, default=0)
        return min(1 << (active[-1] - 1).bit_length(), len(self._answers))

    def _next(self, num_rows: int) -> _Chosen:
        """Each slot's next token."""
        kept = [answer.num_kept for answer in self._answers if answer is not None]
        if self.model.device.type == "cpu":
            self.cache.num_used = max(kept) + 1
        self.step(num_rows)
        answers = self._answers[:num_rows]
        for answer in answers:
            if answer is not None:
                answer.num_kept += 1
        return self._on_way(self._ids[:num_rows], answers)

    def step(self, num_rows: int) -> None:
        """One more token for each of the first slots, whether anyone wants it or not."""
        if self._graphs is None:
            self._step(num_rows)
        else:
            self._graphs.run(self._step, num_rows)

    def _step(self, num_rows: int) -> None:
        rows = self._rows[:num_rows]
        batch = Batch(
            input_ids=self._ids[:num_rows, None],
            position_ids=self._positions[None, :num_rows, None].expand(3, -1, -1),
            answer_indices=rows,
        )
        logits = staged_forward(self.model.module, batch, self.cache)
        self.cache.advance(num_rows)
        self._positions[:num_rows] += 1
        self._choose(logits, rows)

    def _choose(self, logits: torch.Tensor | None, slots: torch.Tensor) -> None:
        """The tokens (rows,) that follow, the same on all ranks, into their slots."""
        if logits is None:
            chosen = torch.empty_like(slots)
        else:
            # an answer that has ended draws on, and stays inside
            number = self._num_chosen[slots].clamp(max=self._draws.shape[1] - 1)
            chosen = choose(logits.float(), self._draws[slots, number], self.sampling)
        self._ids[slots] = agree(chosen)
        self._num_chosen[slots] += 1

    def _on_way(self, tokens: torch.Tensor, answers: Sequence[_Answer | None]) -> _Chosen:
        if not tokens.is_cuda:
            return _Chosen(tokens=tokens.clone(), answers=answers, event=None)
        copy = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        copy.copy_(tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Chosen(tokens=copy, answers=answers, event=event)

    def _take(
        self,
        chosen: deque[_Chosen],
        num_left: int,
        stop: Sequence[str],
        watch: Callable[[Sequence[int]], None] | None,
    ) -> Iterator[tuple[int, Asked, Decoded | ValueError]]:
        """Add tokens to their answers, all but the newest `num_left` steps; answers that end."""
        while len(chosen) > num_left:
            for answer, token in chosen.popleft().pairs():
                self._add(answer, token, stop)
                if watch is not None and answer.number == 0:
                    watch(answer.tokens)
                if answer.is_closed:
                    self._answers[answer.slot] = None
                    given = Decoded(tokens=tuple(answer.tokens), is_finished=answer.is_finished)
                    yield answer.number, answer.asked, given

    def _add(self, answer: _Answer, token: int, stop: Sequence[str]) -> None:
        if token in self.model.end_ids:
            answer.is_finished = answer.is_closed = True
            return
        answer.tokens.append(token)
        if stop and cut_at(self.model.text(answer.tokens), stop)[1]:
            answer.is_finished = answer.is_closed = True
        elif len(answer.tokens) >= answer.asked.limit:
            answer.is_closed = True


#: free slots wait until they are one in so many
_REFILL = 8


#: of the memory that is free, for keys and values; the rest is for the passes themselves
_SHARE_OF_MEMORY = 0.6


def room_for_places(model: LoadedModel) -> int:
    """Tokens whose keys and values fit the memory that is free on every rank of a model."""
    config, layers = model.module.language_model.config, model.module.language_model.decoder.layers
    groups = max(1, config.num_query_groups // ps.get_tensor_model_parallel_world_size())
    dtype = next(model.module.parameters()).dtype
    each = SlotCache.bytes_a_place(len(layers), groups, config.kv_channels, dtype)
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0] + (
            torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        )
    else:
        free = psutil.virtual_memory().available
    places = torch.tensor(int(free * _SHARE_OF_MEMORY) // max(1, each), device=model.device)
    group = ps.get_model_parallel_group()
    if dist.get_world_size(group) > 1:
        dist.all_reduce(places, op=dist.ReduceOp.MIN, group=group)
    return int(places)
