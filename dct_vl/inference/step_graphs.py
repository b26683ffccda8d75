"""A step as a CUDA graph: asked for kernel by kernel, it takes the host ten times as long."""

from __future__ import annotations

from collections.abc import Callable

import torch


class StepGraphs:
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
