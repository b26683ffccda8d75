"""A model for lmms-eval 0.7: its tasks, asked of a checkpoint or a Hugging Face folder.

`lmms-eval --model dct_vl --model_args pretrained=RUN`; lmms-eval finds it by the entry point
`lmms_eval.models`, which names `manifest`. lmms-eval itself is an extra.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from data_prep.schema import Turn
from dct_tokenizer.upright import upright_rgb
from dct_vl.inference.generate.engine import open_engine
from dct_vl.inference.generate.replicas import ParallelSizes, join_replica_group
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.sampling import AnswerSettings, Sampling
from dct_vl.inputs.chat import IMAGE_MARK, VIDEO_MARK

_log = logging.getLogger(__name__)
_NOT_ASKED = "%s cannot be asked: %s"


def manifest() -> ModelManifest:
    """The entry point's value: where lmms-eval finds the class."""
    return ModelManifest(model_id="dct_vl", simple_class_path=f"{__name__}.DctVL")


@dataclass(frozen=True, kw_only=True)
class _Asked:
    position: int
    request: Request
    settings: AnswerSettings


class DctVL(lmms):
    """Answers as `dct-vl generate` does, in one process.

    Args:
        pretrained: a run, a checkpoint, or a Hugging Face folder.
        batch_size: questions at once.
        max_new_tokens: where a task does not say.
        min_pixels, max_pixels: instead of the model's own bounds of an image's area.
        seed: sampling seed, of tasks that sample.
        trust_remote_code: run the code that a Hugging Face folder brings.
        device: ignored; the first GPU where there is one.

    Raises:
        ValueError: `pretrained` is no model, or several processes were started.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        max_new_tokens: int = 128,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        seed: int = 0,
        trust_remote_code: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                "dct_vl runs in one process under lmms-eval: start it without accelerate or "
                "torchrun; `dct-vl generate --workers N` uses several GPUs"
            )
        self.batch_size = int(batch_size)
        self.max_new_tokens = int(max_new_tokens)
        self.seed = int(seed)
        settings = AnswerSettings(
            min_pixels=None if min_pixels is None else int(min_pixels),
            max_pixels=None if max_pixels is None else int(max_pixels),
        )
        alone = ParallelSizes()
        join_replica_group(alone)
        self.engine = open_engine(
            Path(pretrained), settings, alone, trust_remote_code=trust_remote_code
        )

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests; "" where one cannot be asked, which is logged."""
        found = [GenerationResult(text="") for _ in requests]
        asked = [self._asked(position, one) for position, one in enumerate(requests)]
        with tqdm(total=len(asked), desc="dct_vl", unit="answer") as bar:
            for settings in dict.fromkeys(one.settings for one in asked):
                self.engine.settings = settings
                alike = [one for one in asked if one.settings == settings]
                self._answer(alike, found, bar)
        for one, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", one.args, answer.text)
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the greedy one) a request.

        (-inf, False) where one cannot be asked, which is logged.
        """
        found = []
        for one in tqdm(requests, desc="dct_vl", unit="score"):
            context, target, to_visual, doc_id, task, split = one.args
            document = self.task_dict[task][split][doc_id]
            text = target if isinstance(target, str) else target(document)
            request = self._request(context, to_visual(document), _key(task, split, doc_id), 1)
            try:
                encoded = self.engine.encode(request)
            except (ValueError, OSError) as error:
                _log.warning(_NOT_ASKED, request.key, error)
                found.append((-math.inf, False))
            else:
                found.append(self.engine.score(encoded, text))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: none of the tasks that this project reports needs it."""
        raise NotImplementedError("dct_vl answers tasks of one round")

    def _answer(self, alike: Sequence[_Asked], found: list[GenerationResult], bar: Any) -> None:
        ready: list[_Asked] = []

        def encoded() -> Iterator[Any]:
            for one in alike:
                try:
                    prompt = self.engine.encode(one.request)
                except (ValueError, OSError) as error:
                    _log.warning(_NOT_ASKED, one.request.key, error)
                    bar.update()
                    continue
                ready.append(one)
                yield prompt

        for number, reply in self.engine.stream(encoded(), self.batch_size):
            one = ready[number]
            if isinstance(reply, ValueError):
                _log.warning(_NOT_ASKED, one.request.key, reply)
            else:
                counts = TokenCounts(output_tokens=reply.num_tokens)
                found[one.position] = GenerationResult(text=reply.text, token_counts=counts)
            bar.update()

    def _asked(self, position: int, instance: Instance) -> _Asked:
        context, options, to_visual, doc_id, task, split = instance.args
        visuals = to_visual(self.task_dict[task][split][doc_id])
        limit = int(options.get("max_new_tokens") or self.max_new_tokens)
        until = options.get("until") or ()
        sampling = Sampling(seed=self.seed)
        if options.get("do_sample", True) and options.get("temperature"):
            sampling = Sampling(
                temperature=float(options["temperature"]),
                top_p=float(options.get("top_p") or 1.0),
                top_k=int(options.get("top_k") or 0),
                seed=self.seed,
            )
        return _Asked(
            position=position,
            request=self._request(context, visuals, _key(task, split, doc_id), limit),
            settings=replace(
                self.engine.settings,
                sampling=sampling,
                stop=(until,) if isinstance(until, str) else tuple(until),
            ),
        )

    @staticmethod
    def _request(context: str, visuals: Any, key: str, max_new_tokens: int) -> Request:
        """Images come as Pillow's, videos as paths."""
        media = [one for one in visuals or [] if one is not None]
        images = tuple(_encoded(one) for one in media if isinstance(one, Image.Image))
        videos = tuple(Path(one) for one in media if isinstance(one, str | Path))
        if len(images) + len(videos) != len(media):
            kinds = sorted({type(one).__name__ for one in media})
            raise ValueError(f"{key} shows {', '.join(kinds)}; expected images and video files")
        for mark, number in ((IMAGE_MARK, len(images)), (VIDEO_MARK, len(videos))):
            if context.count(mark) != number:
                # a benchmark's own wording; the media then come first
                context = context.replace(mark, "")
        turns = (Turn(role="user", text=context),)
        return Request(
            key=key, turns=turns, images=images, videos=videos, max_new_tokens=max_new_tokens
        )


def _key(task: str, split: str, doc_id: Any) -> str:
    return f"{task}/{split}/{doc_id}"


def _encoded(image: Image.Image) -> bytes:
    """Its pixels as the model sees them, as a quickly made PNG."""
    data = io.BytesIO()
    Image.fromarray(upright_rgb(image)).save(data, "PNG", compress_level=1)
    return data.getvalue()
