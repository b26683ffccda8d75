"""Table, plots and figures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from dct_vl.evaluation.study.collect import StudyRun
from dct_vl.evaluation.study.intervals import difference_interval, share_interval
from dct_vl.evaluation.study.names import by_kind
from dct_vl.evaluation.study.plots import draw_study


@dataclass(frozen=True, kw_only=True)
class Variant:
    """All seeds of one tokenizer."""

    tokenizer: str
    runs: tuple[StudyRun, ...]

    @property
    def right(self) -> np.ndarray:
        """(R, K): right words by seed and sample."""
        return np.stack([run.num_right for run in self.runs])

    @property
    def accuracy(self) -> float:
        """Mean over the seeds."""
        return float(np.mean([run.accuracy for run in self.runs]))

    @property
    def samples_per_second(self) -> float:
        """Median over the seeds whose speed was measured alone, if any was, else over all."""
        alone = self._measured_speeds()
        return float(np.median(alone or [run.training_speed for run in self.runs]))

    @property
    def is_speed_measured(self) -> bool:
        """Whether `samples_per_second` is of runs alone, not of training beside others."""
        return bool(self._measured_speeds())

    def _measured_speeds(self) -> list[float]:
        return [run.measured_speed for run in self.runs if run.measured_speed is not None]

    def share(self, chosen: np.ndarray) -> float:
        """Share of right words of the chosen samples, bool (K,), mean over the seeds."""
        words = self.runs[0].num_words[chosen].sum()
        return float(self.right[:, chosen].sum(axis=1).mean() / words)

    def interval(self) -> tuple[float, float]:
        """95 % over pictures."""
        return share_interval(self.right, self.runs[0].num_words)


def write_study(runs: Sequence[StudyRun], output: Path, *, baseline: str) -> Path:
    """Write study.md, study.png and study.json into `output`; return the table's path.

    Args:
        runs: from `collect_study`.
        output: folder.
        baseline: tokenizer that every other one is compared with, paired by picture.

    Raises:
        ValueError: no run of the baseline.
    """
    variants = group(runs)
    base = next((v for v in variants if v.tokenizer == baseline), None)
    if base is None:
        known = ", ".join(v.tokenizer for v in variants)
        raise ValueError(f"no run has the tokenizer {baseline!r}; scored are {known}")
    output.mkdir(parents=True, exist_ok=True)
    rows = [_row(variant, base) for variant in variants]
    (output / "study.json").write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    draw_study(rows, output / "study.png")
    table = output / "study.md"
    table.write_text(markdown(rows, baseline), encoding="utf-8")
    return table


def group(runs: Sequence[StudyRun]) -> list[Variant]:
    """Runs by tokenizer, most visual tokens first, then by accuracy."""
    names = dict.fromkeys(run.tokenizer for run in runs)
    variants = [
        Variant(
            tokenizer=name,
            runs=tuple(sorted((r for r in runs if r.tokenizer == name), key=lambda r: r.seed)),
        )
        for name in names
    ]
    return sorted(variants, key=lambda v: (-v.runs[0].flops, -v.accuracy))


def _row(variant: Variant, base: Variant) -> dict[str, object]:
    run = variant.runs[0]
    low, high = variant.interval()
    worse, better = difference_interval(variant.right, base.right, run.num_words)
    sources = {str(source): run.sources == source for source in np.unique(run.sources)}
    return {
        "tokenizer": variant.tokenizer,
        "seeds": [r.seed for r in variant.runs],
        "visual_tokens": run.visual_tokens,
        "gflops": run.flops / 1e9,
        "wire_bytes": run.wire_bytes,
        "samples_per_second": variant.samples_per_second,
        "is_speed_measured": variant.is_speed_measured,
        "accuracy": variant.accuracy,
        "accuracy_by_seed": [r.accuracy for r in variant.runs],
        "interval": [low, high],
        "difference": variant.accuracy - base.accuracy,
        "difference_interval": [worse, better],
        "by_source": {source: variant.share(chosen) for source, chosen in sources.items()},
        "difference_by_source": {
            source: variant.share(chosen) - base.share(chosen) for source, chosen in sources.items()
        },
        "difference_interval_by_source": {
            source: list(
                difference_interval(
                    variant.right[:, chosen], base.right[:, chosen], run.num_words[chosen]
                )
            )
            for source, chosen in sources.items()
        },
        "curves": [{"seed": r.seed, "points": [list(p) for p in r.curve]} for r in variant.runs],
    }


def markdown(rows: Sequence[dict], baseline: str) -> str:
    """Two tables: cost and words read, and words read by source."""
    head = ["tokenizer", "visual tokens", "GFLOP a picture", "wire kB", "samples/s", "seeds"]
    head += ["words read, %", "95 %", f"against {baseline}"]
    costs = [
        [
            f"`{row['tokenizer']}`",
            f"{row['visual_tokens']:.1f}",
            f"{row['gflops']:.2f}",
            f"{row['wire_bytes'] / 1e3:.0f}",
            f"{row['samples_per_second']:,.0f}"
            + ("" if row["is_speed_measured"] else " (training)"),
            str(len(row["seeds"])),
            f"{100 * row['accuracy']:.2f}",
            _ends(row["interval"], "–", ""),
            "–"
            if row["tokenizer"] == baseline
            else f"{100 * row['difference']:+.2f} ({_ends(row['difference_interval'], '…', '+')})",
        ]
        for row in rows
    ]
    sources = sorted(rows[0]["by_source"], key=by_kind, reverse=True)
    kinds = [
        [f"`{row['tokenizer']}`", *(_by_source(row, source, baseline) for source in sources)]
        for row in rows
    ]
    return _table(head, costs) + "\n" + _table(["words read, %", *sources], kinds)


def _by_source(row: dict, source: str, baseline: str) -> str:
    share = f"{100 * row['by_source'][source]:.1f}"
    if row["tokenizer"] == baseline:
        return share
    worse, better = (100 * end for end in row["difference_interval_by_source"][source])
    # what is not told from the baseline is left without figures
    return f"{share} ({worse:+.1f} … {better:+.1f})" if worse > 0 or better < 0 else share


def _ends(interval: Sequence[float], between: str, sign: str) -> str:
    low, high = (format(100 * end, f"{sign}.2f") for end in interval)
    return f"{low} {between} {high}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
