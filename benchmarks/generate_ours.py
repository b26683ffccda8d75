"""The contestants of generate.py on this project's engine: JPEG bytes in, answers out.

python benchmarks/generate_ours.py CASE.json RESULT.json
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dct_vl.compat import activate

activate()

from data_prep.schema import Turn  # noqa: E402
from dct_vl.inference.generate.engine import CheckpointEngine, Reply  # noqa: E402
from dct_vl.inference.generate.journal import Journal  # noqa: E402
from dct_vl.inference.generate.replicas import ParallelSizes, ReplicaGroup  # noqa: E402
from dct_vl.inference.generate.requests import Request, Requests, digest_of  # noqa: E402
from dct_vl.inference.generate.run import generate  # noqa: E402
from dct_vl.inference.loading import random_model  # noqa: E402
from dct_vl.inference.sampling import AnswerSettings  # noqa: E402


class ImageRequests(Requests):
    """One question about each of the case's images."""

    def __init__(self, case: dict[str, Any], *, new_tokens: int, limit: int) -> None:
        pattern = f"{case['width']}x{case['height']}-*.jpg"
        files = sorted(Path(case["folder"]).glob(pattern))[:limit]
        turns = (Turn(role="user", text=case["question"]),)
        self._requests = [
            Request(key=f.stem, turns=turns, images=(f,), videos=(), max_new_tokens=new_tokens)
            for f in files
        ]
        self.keys = [one.key for one in self._requests]
        self.rejected = []
        self.digest = digest_of(self._requests)

    def __iter__(self) -> Any:
        return iter(self._requests)


def main() -> None:
    """Answer twice, a few and then all, and write the result."""
    case = json.loads(Path(sys.argv[1]).read_text())
    model = random_model(
        Path(case["folder"]) / "model", tokenizer=case["tokenizer"], compiles=case["compiles"]
    )
    model.__dict__["end_ids"] = frozenset()
    settings = AnswerSettings()
    engine = CheckpointEngine(model, settings)
    firsts: list[float] = []

    def answer(new_tokens: int, limit: int) -> tuple[Any, float]:
        asked = ImageRequests(case, new_tokens=new_tokens, limit=limit)
        # a group counts what it has claimed
        alone = ReplicaGroup(is_leader=True, is_first=True, store=None, sizes=ParallelSizes())
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder) / "answers.jsonl")
            size = case["batch_size"]
            found = generate(engine, asked, journal, alone, settings, batch_size=size)
        return found, time.perf_counter() - began

    _, cold = answer(2, min(2, case["images"]))
    # the slots and graphs of the size that is measured
    answer(case["new_tokens"], min(case["batch_size"] * 2, case["images"]))
    (request,) = list(ImageRequests(case, new_tokens=1, limit=1))
    for _ in range(3):
        began = time.perf_counter()
        (reply,) = engine.answer([engine.encode(request)])
        assert isinstance(reply, Reply)
        firsts.append(time.perf_counter() - began)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    found, seconds = answer(case["new_tokens"], case["images"])

    result = {
        "images_s": found.num_answered / seconds,
        "tokens_s": found.num_tokens / seconds,
        "wait_share": found.wait_seconds / seconds,
        "first_s": statistics.median(firsts),
        "start_s": cold,
        "step_ms": step_time(engine, case["batch_size"]),
        "prompt_tokens": len(engine.encode(request).prompt.input_ids),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30
        if torch.cuda.is_available()
        else None,
        "what": f"{case['batch_size']} slots",
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


@torch.inference_mode()
def step_time(engine: CheckpointEngine, num_rows: int) -> float:
    """Milliseconds of a step of all slots, the choice of tokens included."""
    decoder = engine.decoder
    assert decoder is not None
    repeats = 50 if torch.cuda.is_available() else 2
    for count in (3, repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            decoder.step(min(num_rows, decoder.cache.num_slots))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats * 1e3


if __name__ == "__main__":
    main()
