"""`dct-vl layout-check`: the same losses in every parallel layout that fits."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dct_vl.errors import ConfigError
from dct_vl.training.layout_check.layouts import REFERENCE, choose_layouts, make_inputs
from dct_vl.training.layout_check.runs import (
    BF16,
    FP32,
    VARIANTS,
    Case,
    CaseOutcome,
    CheckSettings,
    Verdict,
    judge,
    run_cases,
)


def layout_check(
    ranks: Annotated[
        int | None, typer.Option(help="CPU processes to use; by default all GPUs, or 2 processes.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="Preset of the visual tokenizer.")] = "dct28_420",
    model_type: Annotated[str, typer.Option(help="qwen2_vl or qwen2_5_vl.")] = "qwen2_vl",
    layer_spec: Annotated[str, typer.Option(help="auto, te or local.")] = "auto",
    only: Annotated[str, typer.Option(help="Comma-separated layouts, like tp2pp2,dp4.")] = "",
    variants: Annotated[str, typer.Option(help="padded, packed, or both.")] = "padded,packed",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of a run.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON of the table.")] = None,
    work_dir: Annotated[
        Path, typer.Option(help="Folder of data, model, runs and logs, made anew every time.")
    ] = Path("outputs/layout_check"),
) -> None:
    """Train a tiny model in every parallel layout that fits, and compare it with one process.

    Losses and gradient norms of all steps must agree within 1e-4 and 1e-3 (fp32 on CPU ranks), or
    2e-2 and 1e-1 (bf16 on GPUs). Exit status 1 where any does not.
    """
    on_cpu, num_ranks = _devices(ranks)
    wanted = _names(variants)
    unknown = [name for name in wanted if name not in VARIANTS]
    if unknown or not wanted:
        raise ConfigError(f"--variants {variants!r}; expected some of {', '.join(VARIANTS)}")
    layouts = choose_layouts(num_ranks, _names(only))
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise ConfigError(f"--json {json_file}: its folder does not exist; make it first")
    tolerance = FP32 if on_cpu else BF16
    settings = CheckSettings(
        inputs=make_inputs(work_dir, model_type),
        work_dir=work_dir,
        on_cpu=on_cpu,
        num_ranks=num_ranks,
        tokenizer=tokenizer,
        layer_spec=layer_spec,
        steps=steps,
    )
    where = "CPU ranks, fp32" if on_cpu else "GPUs, bf16"
    typer.echo(
        f"{num_ranks} {where}, {model_type}, {tokenizer}, {steps} steps; relative differences "
        f"allowed: loss {tolerance.loss:g}, gradient norm {tolerance.norm:g}"
    )
    # larger layouts first where they leave room for others later; references start at once
    cases = [Case(variant=v, layout=layout) for v in wanted for layout in (REFERENCE, *layouts)]
    cases.sort(key=lambda case: case.layout.num_ranks)
    references: dict[str, CaseOutcome] = {}
    waiting: list[CaseOutcome] = []
    verdicts: list[Verdict] = []

    def on_done(outcome: CaseOutcome) -> None:
        if outcome.case.layout == REFERENCE:
            references[outcome.case.variant] = outcome
            waiting.insert(0, outcome)
        else:
            waiting.append(outcome)
        for done in [one for one in waiting if one.case.variant in references]:
            waiting.remove(done)
            verdicts.append(judge(done, references[done.case.variant], tolerance, steps))
            typer.echo(line(verdicts[-1]))

    run_cases(cases, settings, on_done)
    if json_file is not None:
        table: dict[str, Any] = {
            "ranks": num_ranks,
            "device": "cpu" if on_cpu else "gpu",
            "model_type": model_type,
            "tokenizer": tokenizer,
            "layer_spec": layer_spec,
            "steps": steps,
            "tolerance": asdict(tolerance),
            "layouts": [asdict(verdict) for verdict in verdicts],
        }
        json_file.write_text(json.dumps(table, indent=2))
    failed = [v for v in verdicts if v.status == "FAIL"]
    typer.echo(f"{len(verdicts) - len(failed)} of {len(verdicts)} without a failure")
    if failed:
        raise typer.Exit(1)


def line(verdict: Verdict) -> str:
    """A verdict as a line of the table."""
    head = f"{verdict.status:<8}{verdict.variant:<8}{verdict.layout:<11}"
    figures = ""
    if verdict.loss_difference is not None:
        figures = (
            f"loss {verdict.loss_difference:8.1e}  norm {verdict.norm_difference:8.1e}  "
            f"{verdict.seconds:6.1f} s  "
        )
    return f"{head}{figures}{verdict.reason}".rstrip()


def _names(text: str) -> list[str]:
    """Names with commas between, each once: two runs of one name would share a folder."""
    return list(dict.fromkeys(name for name in text.split(",") if name))


def _devices(ranks: int | None) -> tuple[bool, int]:
    """(on the CPU?, ranks)."""
    if ranks is not None:
        # before torch looks: the checks in this process must see what the runs will
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return True, ranks
    import torch

    count = torch.cuda.device_count()
    return (False, count) if count else (True, 2)
