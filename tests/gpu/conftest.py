"""Tests that need a CUDA device. Without one they are skipped before anything heavy is imported.

`CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu` runs them on that device. Unless one is named,
all are hidden, for the sake of the other tests, whose figures are to be the same everywhere.
Training runs start in the background when the first test does.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))


def missing_device() -> str:
    """Why no test of this folder can run; empty where they can."""
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        return (
            "no CUDA device is named: CUDA_VISIBLE_DEVICES=0 python -m pytest tests/gpu runs this"
        )
    import torch

    if torch.cuda.is_available():
        return ""
    return f"torch {torch.__version__} sees no CUDA device"


@functools.cache
def missing_transformer_engine() -> str:
    """Why the layer specs te and hybrid cannot be tested; empty where they can."""
    try:
        import transformer_engine.pytorch  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"Transformer Engine cannot be imported: {error}"
    return ""


@pytest.fixture(scope="session")
def need_spec() -> Callable[[str], None]:
    """need_spec(name) skips where a layer spec's modules are not installed."""

    def need(spec: str) -> None:
        if spec in ("te", "hybrid") and (reason := missing_transformer_engine()):
            pytest.skip(reason)

    return need


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip without a device; otherwise put the tests last that wait for other processes."""
    ours = [item for item in items if HERE in item.path.parents]
    reason = missing_device()
    if ours and reason:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
        return
    slots = [place for place, item in enumerate(items) if HERE in item.path.parents]
    waits = ("exact_losses", "runs")
    ours.sort(key=lambda item: [name in item.fixturenames for name in reversed(waits)])  # type: ignore[attr-defined]
    for place, item in zip(slots, ours, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def runs(
    shards: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[object]:
    """The training runs of the folder, each started once and all at the same time."""
    from gpu_runs import Runs

    with_te = not missing_transformer_engine()
    started = Runs(shards, tiny_model, tmp_path_factory.mktemp("runs"), with_te=with_te)
    yield started
    started.close()


@pytest.fixture(scope="session")
def exact_losses(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], dict[str, list[float]]]]:
    """Tokenizer → loss of each sample of `gpu_packs.SAMPLES` in float32, from a process without a
    device.
    """
    from gpu_runs import Background

    output = tmp_path_factory.mktemp("exact") / "losses.json"
    background = Background(output.parent)
    command = [sys.executable, str(HERE / "exact_losses.py"), str(tiny_model), str(output)]
    done = background.start("exact", command, CUDA_VISIBLE_DEVICES="")

    def read() -> dict[str, list[float]]:
        import json

        done.result()
        losses: dict[str, list[float]] = json.loads(output.read_text())
        return losses

    yield read
    background.close()


@pytest.fixture(scope="session", autouse=True)
def background(request: pytest.FixtureRequest) -> None:
    """Start in the first test what later ones wait for."""
    wanted = {name for item in request.session.items for name in item.fixturenames}  # type: ignore[attr-defined]
    for name in ("runs", "exact_losses"):
        if name in wanted:
            request.getfixturevalue(name)
