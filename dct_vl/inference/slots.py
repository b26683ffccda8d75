"""Answer prompts token by token, in slots that are filled again as soon as an answer ends.

A step asks the model for one token of every slot. What it needs lies in tensors that never move,
so that on a CUDA device a whole step, the choice of its tokens included, is one graph.

Shape legend: N slots, n the first of them that a step is made for, C places a slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from megatron.core import parallel_state as ps

from dct_vl.inference.decode import agree, cut_at, for_logits, staged_forward
from dct_vl.inference.loading import LoadedModel
from dct_vl.inference.sampling import Sampling, choose, draws_of
from dct_vl.inputs.batch import Batch, pack_batch
from dct_vl.inputs.samples import EncodedChat
from dct_vl.model.kv_cache import SlotCache


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt, and how long its answer may be."""

    #: its key seeds what is drawn
    prompt: EncodedChat
    #: most tokens of the answer, at least 1
    limit: int

    @property
    def num_places(self) -> int:
        """Places that a slot needs; one more than is kept, for the step that finds the end."""
        return len(self.prompt.input_ids) + self.limit + 1


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What followed a prompt."""

    #: without the end mark
    tokens: tuple[int, ...]
    #: False where the answer was cut off at its limit
    is_finished: bool


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
        capacity: `Asked.num_places` of the longest.
    """

    def __init__(
        self, model: LoadedModel, sampling: Sampling, *, num_slots: int, capacity: int
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.cache = SlotCache(num_slots, capacity, model.device)
        self._answers: list[_Answer | None] = [None] * num_slots
        self._rows = torch.arange(num_slots, device=model.device)
        #: (N,) int64 each: the newest token, its position, and how many an answer has
        self._ids, self._positions, self._num_chosen = torch.zeros(
            3, num_slots, dtype=torch.int64, device=model.device
        )
        #: (N, C) float64, see `draws_of`
        width = capacity if sampling.temperature else 1
        self._draws = torch.zeros(num_slots, width, dtype=torch.float64, device=model.device)
        on_cuda = model.device.type == "cuda"
        is_whole = ps.get_tensor_model_parallel_world_size() == 1 and (
            ps.get_pipeline_model_parallel_world_size() == 1
        )
        self._graphs = _StepGraphs(self._step) if on_cuda and is_whole else None
        # one step runs while the tokens of the one before are looked at
        self._num_ahead = 1 if on_cuda else 0

    @torch.inference_mode()
    def answer(
        self,
        asked: Iterable[Asked],
        stop: Sequence[str] = (),
        watch: Callable[[Sequence[int]], None] | None = None,
    ) -> Iterator[tuple[int, Decoded]]:
        """Answer all that is asked: (number from 0 on in its order, answer), as answers end.

        Args:
            asked: read when slots are free.
            stop: an answer ends with the first of these texts.
            watch: called after each step with the tokens of the first answer so far; what it
                raises ends all of them.

        Raises:
            ValueError: a prompt and its answer need more places than a slot has.
        """
        waiting = enumerate(asked)
        chosen: deque[_Chosen] = deque()
        try:
            while True:
                read = list(self._admit(waiting))
                chosen.extend(read)
                if not self._num_ahead:
                    yield from self._take(chosen, 0, stop, watch)
                num_rows = self._num_rows()
                if num_rows:
                    chosen.append(self._next(num_rows))
                yield from self._take(chosen, self._num_ahead if num_rows else 0, stop, watch)
                if not num_rows and not read:
                    return
        finally:
            self._answers = [None] * len(self._answers)

    def _admit(self, waiting: Iterator[tuple[int, Asked]]) -> Iterator[_Chosen]:
        """Fill free slots, once there are enough of them for a pass over prompts to be worth it."""
        free = [slot for slot, answer in enumerate(self._answers) if answer is None]
        num_slots = len(self._answers)
        if len(free) < num_slots and len(free) * _REFILL < num_slots:
            return
        most = _PROMPT_TOKENS[self.model.device.type]
        chunk: list[_Answer] = []
        for slot, (number, asked) in zip(free, waiting, strict=False):
            if asked.num_places > self.cache.capacity:
                raise ValueError(
                    f"{asked.prompt.__key__}: {len(asked.prompt.input_ids)} tokens and an answer "
                    f"of {asked.limit} do not fit a slot of {self.cache.capacity}"
                )
            length = len(asked.prompt.input_ids)
            if chunk and sum(one.num_kept for one in chunk) + length > most:
                yield self._read(chunk)
                chunk = []
            answer = _Answer(number=number, asked=asked, slot=slot, num_kept=length)
            self._answers[slot] = answer
            chunk.append(answer)
        if chunk:
            yield self._read(chunk)

    def _read(self, answers: Sequence[_Answer]) -> _Chosen:
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
        self.cache.begin_prompts(slots, batch.segments)
        ends = batch.segments.cu_seqlens[1:].to(torch.int64) - 1
        batch = replace(batch, answer_indices=ends)
        logits = staged_forward(self.model.module, batch, self.cache)
        self.cache.end_prompts()
        self._positions[slots] = torch.tensor(following, device=device)
        self._num_chosen[slots] = 0
        self._choose(logits, slots)
        return self._on_way(self._ids[slots], answers)

    def _num_rows(self) -> int:
        """The first slots, as far as there is an answer; on a device a number that graphs share."""
        active = [slot + 1 for slot, answer in enumerate(self._answers) if answer is not None]
        if not active or self._graphs is None:
            return max(active, default=0)
        return min(1 << (active[-1] - 1).bit_length(), len(self._answers))

    def _next(self, num_rows: int) -> _Chosen:
        """Each slot's next token."""
        kept = [answer.num_kept for answer in self._answers if answer is not None]
        if self.model.device.type == "cpu":
            self.cache.num_used = max(kept) + 1
        if self._graphs is None:
            self._step(num_rows)
        else:
            self._graphs.run(num_rows)
        answers = self._answers[:num_rows]
        for answer in answers:
            if answer is not None:
                answer.num_kept += 1
        return self._on_way(self._ids[:num_rows], answers)

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
    ) -> Iterator[tuple[int, Decoded]]:
        """Add tokens to their answers, all but the newest `num_left` steps; answers that end."""
        while len(chosen) > num_left:
            for answer, token in chosen.popleft().pairs():
                self._add(answer, token, stop)
                if watch is not None and answer.number == 0:
                    watch(answer.tokens)
                if answer.is_closed:
                    self._answers[answer.slot] = None
                    yield (
                        answer.number,
                        Decoded(tokens=tuple(answer.tokens), is_finished=answer.is_finished),
                    )

    def _add(self, answer: _Answer, token: int, stop: Sequence[str]) -> None:
        if token in self.model.end_ids:
            answer.is_finished = answer.is_closed = True
            return
        answer.tokens.append(token)
        if stop and cut_at(self.model.text(answer.tokens), stop)[1]:
            answer.is_finished = answer.is_closed = True
        elif len(answer.tokens) >= answer.asked.limit:
            answer.is_closed = True


#: free slots wait until they are this part of all
_REFILL = 8


class _StepGraphs:
    """A step as a CUDA graph for each number of rows.

    The first step of a number runs as it is, and compiles what is compiled; the second one is
    recorded.
    """

    def __init__(self, step: Callable[[int], None]) -> None:
        self._step = step
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}

    def run(self, num_rows: int) -> None:
        if num_rows not in self._graphs:
            self._graphs[num_rows] = None
            self._step(num_rows)
            return
        graph = self._graphs[num_rows]
        if graph is None:
            graph = self._graphs[num_rows] = torch.cuda.CUDAGraph()
            pool = next((g.pool() for g in self._graphs.values() if g not in (None, graph)), None)
            # other threads prepare images meanwhile, and may ask for memory
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._step(num_rows)
        graph.replay()
