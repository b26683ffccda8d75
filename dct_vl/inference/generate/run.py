"""Answer all requests: batches, replica groups, resume, progress."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from tqdm import tqdm

from dct_vl.inference.generate.engine import Engine, Reply
from dct_vl.inference.generate.journal import Journal
from dct_vl.inference.generate.replicas import ReplicaGroup
from dct_vl.inference.generate.requests import Request, Requests
from dct_vl.inference.sampling import AnswerSettings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went, over all replica groups and starts."""

    num_answered: int
    num_rejected: int
    #: tokens that this process's group generated in this start
    num_tokens: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Requests that are answered together, with what could be made of them."""

    #: (key, encoded)
    asked: list[tuple[str, Any]]
    rejected: list[tuple[str, Exception]]


def generate(
    engine: Engine,
    requests: Requests,
    journal: Journal,
    group: ReplicaGroup,
    settings: AnswerSettings,
    *,
    batch_size: int,
) -> Outcome | None:
    """Answer what the journal does not have yet.

    Batches are cut from all requests, whatever is answered already: a request meets the same
    neighbours in every start, so that also in half precision an answer is the same whenever it is
    made. Of a batch that a kill cut in two only the missing answers are written.

    Returns:
        The outcome on the first leader, None elsewhere.

    Raises:
        ValueError: the journal belongs to other settings.
    """
    total = len(requests.keys)
    batches = [range(at, min(at + batch_size, total)) for at in range(0, total, batch_size)]
    start: dict[str, Any] = {}
    if group.is_first:
        start = _prepare(engine, requests, journal, settings, batches)
    start = group.publish(start)
    if start.get("error"):
        raise ValueError(start["error"])
    todo, done = start["todo"], set(start["done"])
    prepared = _Prepared(engine, requests, [batches[number] for number in todo], group)
    started, num_tokens = time.monotonic(), 0
    with tqdm(
        desc=journal.output.stem,
        total=total,
        initial=start["num_done"],
        unit="answer",
        disable=not group.is_first,
        smoothing=0.1,
    ) as bar:
        while (batch := group.share(prepared.take() if group.is_leader else None)) is not None:
            replies = engine.answer([one for _, one in batch.asked]) if batch.asked else []
            if not group.is_leader:
                continue
            pairs = [
                (key, reply)
                for (key, _), reply in zip(batch.asked, replies, strict=True)
                if key not in done
            ]
            journal.add([_line(key, reply, engine) for key, reply in pairs])
            rejected = [(key, error) for key, error in batch.rejected if key not in done]
            for key, error in rejected:
                journal.reject(key, error)
            num_tokens += sum(reply.num_tokens for _, reply in pairs)
            count = group.note_answers(len(pairs) + len(rejected))
            seconds = time.monotonic() - started
            bar.update(count if group.store is None else start["num_done"] + count - bar.n)
            bar.set_postfix(tokens_s=f"{num_tokens / seconds:.0f}", refresh=False)
        if group.is_leader:
            group.finish()
        if not group.is_first:
            return None
        # the other groups' last answers
        bar.update(len(requests.keys) - bar.n)
    answered, rejected_count = journal.finish(requests.keys)
    return Outcome(
        num_answered=answered,
        num_rejected=rejected_count,
        num_tokens=num_tokens,
        seconds=time.monotonic() - started,
    )


def _prepare(
    engine: Engine,
    requests: Requests,
    journal: Journal,
    settings: AnswerSettings,
    batches: list[range],
) -> dict[str, Any]:
    """Which batches are left; an error goes to every process."""
    fixed = {
        **engine.identity(),
        "questions": requests.digest,
        "min_pixels": engine.min_pixels,
        "max_pixels": engine.max_pixels,
        "sampling": asdict(settings.sampling),
        "stop": list(settings.stop),
    }
    keys = requests.keys
    try:
        done = journal.prepare(fixed, [*keys, *(key for key, _ in requests.rejected)])
    except ValueError as error:
        return {"error": str(error)}
    for key, wrong in requests.rejected:
        if key not in done:
            journal.reject(key, wrong)
    todo = [n for n, batch in enumerate(batches) if any(keys[i] not in done for i in batch)]
    halves = {keys[i] for number in todo for i in batches[number]} & done
    return {
        "todo": todo,
        "done": sorted(halves),
        "num_done": sum(key in done for key in keys),
    }


class _Prepared:
    """Batches of this group, each encoded in another thread while the one before is answered."""

    def __init__(
        self, engine: Engine, requests: Requests, batches: list[range], group: ReplicaGroup
    ) -> None:
        self._engine = engine
        self._batches = batches
        self._group = group
        self._requests = enumerate(requests)
        self._threads = ThreadPoolExecutor(1)
        self._next: Future[_Batch | None] | None = None

    def take(self) -> _Batch | None:
        """The next batch, or None when no group has one left."""
        current = self._next or self._threads.submit(self._encode)
        batch = current.result()
        if batch is not None:
            self._next = self._threads.submit(self._encode)
        return batch

    def _encode(self) -> _Batch | None:
        number = self._group.claim()
        if number >= len(self._batches):
            return None
        asked: list[tuple[str, Any]] = []
        rejected: list[tuple[str, Exception]] = []
        for request in self._read(self._batches[number]):
            try:
                asked.append((request.key, self._engine.encode(request)))
            except (ValueError, OSError) as error:
                rejected.append((request.key, error))
        return _Batch(asked=asked, rejected=rejected)

    def _read(self, batch: range) -> Iterator[Request]:
        """Claims only grow, so that one pass over the requests serves all of them."""
        for number, request in self._requests:
            if number >= batch.start:
                yield request
                yield from (one for _, one in islice(self._requests, len(batch) - 1))
                return


def _line(key: str, reply: Reply, engine: Engine) -> dict[str, Any]:
    """What `dct-vl score` reads, and a little more."""
    line = {
        "key": key,
        "answer": reply.text,
        "finish": "stop" if reply.is_finished else "length",
        "num_tokens": reply.num_tokens,
        "num_visual_tokens": reply.num_visual_tokens,
        "min_pixels": engine.min_pixels,
        "max_pixels": engine.max_pixels,
    }
    return {**line, "damage": list(reply.damage)} if reply.damage else line
