"""The layouts, and which of them fit a number of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dct_vl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ParallelLayout:
    """One way to divide a model and its batches over ranks."""

    name: str
    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    sequence_parallel: bool = False

    @property
    def num_ranks(self) -> int:
        """Processes that it takes."""
        return self.tp * self.pp * self.cp * self.dp

    def overrides(self, num_streams: int) -> list[str]:
        """Settings of `dct-vl fit`.

        Args:
            num_streams: loader processes of all data-parallel ranks together. With as many in each
                layout, every step sees the same samples.
        """
        return [
            f"trainer.tensor_parallel_size={self.tp}",
            f"trainer.pipeline_parallel_size={self.pp}",
            f"trainer.context_parallel_size={self.cp}",
            f"trainer.sequence_parallel={str(self.sequence_parallel).lower()}",
            f"data.num_workers={num_streams // self.dp}",
        ]


REFERENCE = ParallelLayout(name="single")
LAYOUTS = (
    ParallelLayout(name="tp2", tp=2),
    ParallelLayout(name="tp2_sp", tp=2, sequence_parallel=True),
    ParallelLayout(name="pp2", pp=2),
    ParallelLayout(name="dp2", dp=2),
    ParallelLayout(name="cp2", cp=2),
    ParallelLayout(name="tp2pp2", tp=2, pp=2),
    ParallelLayout(name="tp2dp2_sp", tp=2, dp=2, sequence_parallel=True),
    ParallelLayout(name="tp2cp2_sp", tp=2, cp=2, sequence_parallel=True),
    ParallelLayout(name="pp2cp2", pp=2, cp=2),
    ParallelLayout(name="tp4", tp=4),
    ParallelLayout(name="pp4", pp=4),
    ParallelLayout(name="dp4", dp=4),
)


def choose_layouts(num_ranks: int, only: Sequence[str] = ()) -> list[ParallelLayout]:
    """Layouts that fit.

    Args:
        num_ranks: processes that can run at once.
        only: names; empty takes all that fit.

    Raises:
        ConfigError: an unknown name, a named layout that does not fit, or too few ranks.
    """
    known = {layout.name: layout for layout in LAYOUTS}
    for name in only:
        if name not in known:
            raise ConfigError(f"unknown layout {name!r}; known: {', '.join(known)}")
        if known[name].num_ranks > num_ranks:
            raise ConfigError(
                f"layout {name} takes {known[name].num_ranks} ranks and there are {num_ranks}: "
                "raise --ranks, which takes CPU processes, or leave it out of --only"
            )
    if num_ranks < 2:
        raise ConfigError(
            f"{num_ranks} rank: nothing to compare; give --ranks 2 to use CPU processes"
        )
    chosen = [known[name] for name in only] or list(LAYOUTS)
    return [layout for layout in chosen if layout.num_ranks <= num_ranks]
