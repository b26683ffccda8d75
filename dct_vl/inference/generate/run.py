"""Answer all requests: replica groups, preparation ahead of the engine, resume, progress."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from tqdm import tqdm

from dct_vl.inference.generate.engine import Engine, Reply
from dct_vl.inference.generate.journal import Journal
from dct_vl.inference.generate.replicas import ReplicaGroup
from dct_vl.inference.generate.requests import Request, Requests
from dct_vl.inference.sampling import AnswerSettings

#: chunks of requests that a group prepares while the engine answers the one before
_NUM_AHEAD = 1
#: threads that decode and resize; more would take turns with the one that feeds a GPU
_NUM_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How it went, over all replica groups and starts."""

    num_answered: int
    num_rejected: int
    #: tokens that this process's group generated in this start
    num_tokens: int
    seconds: float
    #: of `seconds`, in which this process's engine had to wait for requests to be prepared
    wait_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Requests that a group takes at once, with what could be made of them."""

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
    """Answer what the journal does not have yet, at most `batch_size` requests at the same time.

    Returns:
        The outcome on the first leader, None elsewhere.

    Raises:
        ValueError: the journal belongs to other settings.
    """
    total = len(requests.keys)
    chunks = [range(at, min(at + batch_size, total)) for at in range(0, total, batch_size)]
    start: dict[str, Any] = {}
    if group.is_first:
        start = _prepare(engine, requests, journal, settings, chunks)
    start = group.publish(start)
    if start.get("error"):
        raise ValueError(start["error"])
    started, num_tokens = time.monotonic(), 0
    with tqdm(
        desc=journal.output.stem,
        total=total,
        initial=start["num_done"],
        unit="answer",
        disable=not group.is_first,
        smoothing=0.1,
    ) as bar:

        def note(number: int) -> None:
            count = group.note_answers(number)
            bar.update(count if group.store is None else start["num_done"] + count - bar.n)
            seconds = time.monotonic() - started
            rates = {"tokens_s": f"{num_tokens / seconds:.0f}"}
            bar.set_postfix({**rates, "wait": f"{feed.waited / seconds:.0%}"}, refresh=False)

        def reject(key: str, error: Exception) -> None:
            journal.reject(key, error)
            note(1)

        done = set(start["done"])
        todo = [chunks[number] for number in start["todo"]]
        feed = _Feed(engine, requests, todo, done, group, reject)
        for number, reply in engine.stream(iter(feed), batch_size):
            if not group.is_leader:
                continue
            key = feed.keys[number]
            if isinstance(reply, Reply):
                journal.add([_line(key, reply, engine)])
                num_tokens += reply.num_tokens
                note(1)
            else:
                reject(key, reply)
        if group.is_leader:
            group.finish()
        if not group.is_first:
            return None
        # the other groups' last answers
        bar.update(total - bar.n)
    answered, rejected_count = journal.finish(requests.keys)
    return Outcome(
        num_answered=answered,
        num_rejected=rejected_count,
        num_tokens=num_tokens,
        seconds=time.monotonic() - started,
        wait_seconds=feed.waited,
    )


def _prepare(
    engine: Engine,
    requests: Requests,
    journal: Journal,
    settings: AnswerSettings,
    chunks: list[range],
) -> dict[str, Any]:
    """Which chunks are left, and what of them is there; an error goes to every process."""
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
    todo = [n for n, chunk in enumerate(chunks) if any(keys[i] not in done for i in chunk)]
    return {
        "todo": todo,
        "done": sorted({keys[i] for number in todo for i in chunks[number]} & done),
        "num_done": sum(key in done for key in keys),
    }


class _Feed:
    """What the engine gets to answer: chunks of this group, prepared in threads ahead of it.

    Args:
        chunks: of the requests, those that are left for all groups.
        done: keys in them that are answered or rejected already.
        reject: told, on the leader, of requests that cannot be prepared.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        chunks: list[range],
        done: set[str],
        group: ReplicaGroup,
        reject: Callable[[str, Exception], None],
    ) -> None:
        self._engine = engine
        self._chunks = chunks
        self._done = done
        self._group = group
        self._reject = reject
        self._requests = enumerate(requests)
        #: of what was handed out, in order
        self.keys: list[str] = []
        #: seconds in which the engine had to wait
        self.waited = 0.0

    def __iter__(self) -> Iterator[Any]:
        prepared = self._prepared() if self._group.is_leader else iter(())
        while True:
            began = time.monotonic()
            chunk = self._group.share(next(prepared, None))
            self.waited += time.monotonic() - began
            if chunk is None:
                return
            if self._group.is_leader:
                for key, error in chunk.rejected:
                    self._reject(key, error)
            for key, encoded in chunk.asked:
                self.keys.append(key)
                yield encoded

    def _prepared(self) -> Iterator[_Chunk]:
        """Chunks until no group has one left."""
        ahead: deque[list[tuple[str, Future[Any]]]] = deque()
        threads = ThreadPoolExecutor(_NUM_THREADS if torch.cuda.is_available() else 1)
        try:
            while True:
                while len(ahead) <= _NUM_AHEAD and (chunk := self._claim()) is not None:
                    ahead.append(
                        [(one.key, threads.submit(self._engine.encode, one)) for one in chunk]
                    )
                if not ahead:
                    return
                yield _collected(ahead.popleft())
        finally:
            # nobody waits for what an interrupted run had begun
            threads.shutdown(wait=False, cancel_futures=True)

    def _claim(self) -> list[Request] | None:
        number = self._group.claim()
        if number >= len(self._chunks):
            return None
        return [one for one in self._read(self._chunks[number]) if one.key not in self._done]

    def _read(self, chunk: range) -> Iterator[Request]:
        """Claims only grow, so that one pass over the requests serves all of them."""
        for number, request in self._requests:
            if number >= chunk.start:
                yield request
                yield from (one for _, one in islice(self._requests, len(chunk) - 1))
                return


def _collected(chunk: list[tuple[str, Future[Any]]]) -> _Chunk:
    asked: list[tuple[str, Any]] = []
    rejected: list[tuple[str, Exception]] = []
    for key, future in chunk:
        try:
            asked.append((key, future.result()))
        except (ValueError, OSError) as error:
            rejected.append((key, error))
    return _Chunk(asked=asked, rejected=rejected)


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
