"""Engines answer requests: their protocol, the engine of a training checkpoint, `open_engine`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.energon import Sample

from dct_tokenizer import VisualTokenizer
from dct_vl.inference.asked import Asked, Decoded, Queue
from dct_vl.inference.decode import cut_at, logits_of
from dct_vl.inference.generate.replicas import ParallelSizes
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.loading import LoadedModel, load_checkpoint, load_folder
from dct_vl.inference.sampling import AnswerSettings
from dct_vl.inference.slots import SlotDecoder, room_for_places
from dct_vl.inputs.clips import VideoRules
from dct_vl.inputs.encode import encode_chat, plan_chat
from dct_vl.inputs.samples import EncodedChat
from dct_vl.inputs.shard_reader import HeldOut
from dct_vl.model.families.qwen_vl.config import is_known_folder
from dct_vl.runs.checkpoint_files import weights_fingerprint

#: that take longer by the 15 seconds that compiling takes, if nothing is compiled
_MANY_REQUESTS = 3000
#: of the shortest slots
_LEAST_PLACES = 256
#: is called after each token with the text of a batch's first answer so far
Watch = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer."""

    text: str
    num_tokens: int
    #: False where it was cut off at its limit
    is_finished: bool
    num_visual_tokens: int
    #: what is wrong with videos of which only a part was seen
    damage: tuple[str, ...] = ()


class Engine(Protocol):
    """A model in this process, or this process's part of one."""

    #: may be changed between batches, except the pixel bounds
    settings: AnswerSettings
    #: bounds of an image's area in pixels, as they are in force
    min_pixels: int
    max_pixels: int

    @property
    def visual(self) -> VisualTokenizer:
        """The tokenizer through which images are seen, under these bounds."""

    @property
    def video_rules(self) -> VideoRules:
        """What is taken of a video."""

    def identity(self) -> dict[str, Any]:
        """What engines with the same answers have in common, as JSON."""

    def encode(self, request: Request) -> Any:
        """What `answer` takes; may run in another thread.

        Raises:
            ValueError, OSError: the request cannot be answered.
        """

    def answer(self, encoded: Sequence[Any], watch: Watch | None = None) -> list[Reply]:
        """Answer a batch; where a model is divided, all its ranks call this together.

        What `watch` raises ends the answer and is raised here.
        """

    def stream(
        self, encoded: Iterator[Any], batch_size: int
    ) -> Iterator[tuple[int, Reply | ValueError]]:
        """Answer all that comes, at most `batch_size` at the same time, for speed in whatever
        order: its number from 0 on, and the reply or why there is none.
        """

    def score(self, encoded: Any, continuation: str) -> tuple[float, bool]:
        """Log-probability of a text after a prompt, and whether it is what greedy decoding says.

        Raises:
            ValueError: the text has no token.
        """


def score_of(logits: torch.Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of tokens and whether each is the likeliest, from their logits (N, V)."""
    wanted = torch.tensor(tokens, device=logits.device)
    shares = logits.float().log_softmax(dim=-1)
    total = shares.gather(1, wanted[:, None]).sum()
    return float(total), bool((logits.argmax(dim=-1) == wanted).all())


class CheckpointEngine:
    """This project's own model, in this process or divided over its replica group.

    Args:
        model: this process's part of it.
        settings: of the answers.
        is_blank: images and videos are replaced by even grey ones of their size.
    """

    def __init__(
        self, model: LoadedModel, settings: AnswerSettings, *, is_blank: bool = False
    ) -> None:
        visual = model.visual
        bounded = visual.within(
            visual.min_pixels if settings.min_pixels is None else settings.min_pixels,
            visual.max_pixels if settings.max_pixels is None else settings.max_pixels,
        )
        self.settings = settings
        self.is_blank = is_blank
        self.model = replace(model, visual=bounded)
        #: the slots there are
        self.decoder: SlotDecoder | None = None
        self.min_pixels, self.max_pixels = bounded.min_pixels, bounded.max_pixels

    @property
    def visual(self) -> VisualTokenizer:
        return self.model.visual

    @property
    def video_rules(self) -> VideoRules:
        return self.model.inputs.video

    def identity(self) -> dict[str, Any]:
        run = self.model.run
        return {
            "run": run.experiment_name,
            "step": self.model.step,
            "weights": weights_fingerprint(self.model.checkpoint),
            "tokenizer": run.tokenizer,
            "dtype": str(next(self.model.module.parameters()).dtype),
            **({"blank": True} if self.is_blank else {}),
        }

    def encode(self, request: Request) -> Asked:
        """Prompt and cells; of videos as much as training would take."""
        prompt = encode_request(self.model, request, is_blank=self.is_blank)
        return Asked(prompt=prompt, limit=request.max_new_tokens)

    def answer(self, encoded: Sequence[Asked], watch: Watch | None = None) -> list[Reply]:
        found = dict(self._answers(iter(encoded), len(encoded), watch))
        for reply in found.values():
            if isinstance(reply, ValueError):
                raise reply
        return [found[number] for number in range(len(encoded))]  # type: ignore[misc]

    def stream(
        self, encoded: Iterator[Asked], batch_size: int
    ) -> Iterator[tuple[int, Reply | ValueError]]:
        return self._answers(encoded, batch_size, None)

    def _answers(
        self, encoded: Iterator[Asked], batch_size: int, watch: Watch | None
    ) -> Iterator[tuple[int, Reply | ValueError]]:
        follow = None if watch is None else lambda tokens: watch(self.model.text(tokens))
        waiting = Queue(encoded)
        while (first := waiting.first()) is not None:
            number, asked = first
            try:
                decoder = self._slots_for(asked, batch_size)
            except ValueError as error:
                waiting.pop()
                yield number, error
                continue
            for answered, one, given in decoder.answer(waiting, self.settings.stop, follow):
                yield answered, self._reply(one, given)
            del decoder  # or it would be held while larger slots are made

    def _slots_for(self, asked: Asked, batch_size: int) -> SlotDecoder:
        """The slots there are, or longer or more ones, as far as the memory goes.

        Raises:
            ValueError: one slot that is long enough is more than there is memory for.
        """
        held = self.decoder
        num_slots, needed = batch_size, asked.num_places
        if held is not None and held.sampling == self.settings.sampling:
            num_slots = max(num_slots, held.wanted_slots)
            if needed <= held.cache.capacity and num_slots == held.wanted_slots:
                return held
            needed = max(needed, held.cache.capacity)
        places = room_for_places(self.model)
        if held is not None:
            places += held.cache.num_slots * held.cache.capacity
        # room to spare, so that slots are seldom made anew
        capacity = max(_LEAST_PLACES, 1 << (needed - 1).bit_length())
        if places < num_slots * capacity:
            capacity = -(-needed // _LEAST_PLACES) * _LEAST_PLACES
        if places < capacity:
            raise ValueError(
                f"{len(asked.prompt.input_ids)} tokens and an answer of {asked.limit} need "
                f"{capacity} places of keys and values; there is memory for {places}"
            )
        self.decoder = held = None  # their memory is free before others are made
        self.decoder = SlotDecoder(
            self.model,
            self.settings.sampling,
            num_slots=min(num_slots, places // capacity),
            wanted_slots=num_slots,
            capacity=capacity,
        )
        return self.decoder

    def _reply(self, asked: Asked, given: Decoded | ValueError) -> Reply | ValueError:
        if isinstance(given, ValueError):
            return given
        return Reply(
            text=cut_at(self.model.text(given.tokens), self.settings.stop)[0].strip(),
            num_tokens=len(given.tokens),
            is_finished=given.is_finished,
            num_visual_tokens=int((asked.prompt.input_ids < 0).sum()),
            damage=asked.prompt.damage,
        )

    def score(self, encoded: Asked, continuation: str) -> tuple[float, bool]:
        """See `Engine`; for a model that is not divided."""
        tokens = self.model.chat.tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not tokens:
            raise ValueError("the text to score has no token")
        prompt = encoded.prompt
        length, following = len(prompt.input_ids), prompt.position_ids.max() + 1
        positions = np.arange(following, following + len(tokens))
        whole = replace(
            prompt,
            input_ids=np.concatenate((prompt.input_ids, tokens)),
            is_answer=np.concatenate((prompt.is_answer, np.ones(len(tokens), dtype=bool))),
            position_ids=np.concatenate(
                (prompt.position_ids, np.broadcast_to(positions, (3, len(tokens)))), axis=1
            ),
        )
        indices = torch.arange(length - 1, length - 1 + len(tokens))
        return score_of(logits_of(self.model, whole, indices), tokens)


def encode_request(model: LoadedModel, request: Request, *, is_blank: bool = False) -> EncodedChat:
    """A request as the model takes it; of videos as much as training would take.

    Raises:
        ValueError, OSError: marks and media differ in number, the text holds a control token, or
            an image or video cannot be read or planned.
    """
    origin = Sample(__key__=request.key, __restore_key__=())
    planned = plan_chat(model.inputs, origin, request.turns, *request.read(), is_prompt=True)
    return encode_chat(model.inputs, planned, is_blank=is_blank)


def encode_sample(model: LoadedModel, sample: HeldOut) -> EncodedChat:
    """A whole conversation as training sees it; a ValueError where training would reject it."""
    origin = Sample(__key__=sample.key, __restore_key__=())
    turns = sample.record.turns
    planned = plan_chat(model.inputs, origin, turns, sample.images, sample.videos)
    return encode_chat(model.inputs, planned)


def open_engine(
    model: Path,
    settings: AnswerSettings,
    sizes: ParallelSizes,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    num_requests: int = 1,
) -> Engine:
    """Load a run, a checkpoint or a Hugging Face folder; `join_replica_group` comes before.

    The model computes in `dtype`, by default in bf16 on a GPU and in fp32 on the CPU. Kernels are
    compiled for it where there are so many requests that this pays.

    Raises:
        ValueError: none of these, a folder with code that is not trusted, or one that was to be
            divided over ranks.
    """
    compiles = num_requests >= _MANY_REQUESTS * sizes.replicas
    cuda = torch.cuda.is_available()
    chosen = dtype or (torch.bfloat16 if cuda else torch.float32)
    if not (model / "config.json").is_file():
        return CheckpointEngine(load_checkpoint(model, dtype=chosen, compiles=compiles), settings)
    if is_known_folder(model):
        return CheckpointEngine(load_folder(model, dtype=chosen, compiles=compiles), settings)
    if sizes.processes_each > 1:
        raise ValueError(
            f"{model} runs in transformers, and one process holds it whole: leave --tp and --pp out"
        )
    from dct_vl.inference.generate.hf_engine import HfEngine, brings_code

    if brings_code(model) and not trust_remote_code:
        raise ValueError(f"{model} brings code of its own: add --trust-remote-code to run it")
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    return HfEngine(
        model, settings, device=device, dtype=chosen, trust_remote_code=trust_remote_code
    )
