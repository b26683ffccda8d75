"""RUN/summary.html: one page that says what a run was and how it went."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from markupsafe import Markup

from data_prep.durable import write_durably
from dct_vl.pages.charts import Area, Line, area_chart, line_chart
from dct_vl.pages.page import duration, figure, percent, render_page
from dct_vl.runs.config.tuning import trained_parts
from dct_vl.runs.series import (
    TOKEN_KINDS,
    Steps,
    column,
    first_and_last_loss,
    median,
    steady_steps,
    steady_throughput,
    token_rates,
)
from dct_vl.training.report.run_facts import RunFacts, gather, span

SUMMARY_NAME = "summary.html"


def write_run_summary(run_dir: str | Path) -> Path:
    """Write the page of a run that has ended, is still going, or was cut off.

    Returns:
        run_dir/summary.html

    Raises:
        ValueError: the folder is not a run's.
    """
    facts = gather(run_dir)
    path = Path(run_dir) / SUMMARY_NAME
    context = {
        "facts": facts,
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "span": span(facts.steps) if facts.steps else None,
        "cards": _headline(facts) if facts.steps else [],
        "charts": _charts(facts) if facts.steps else [],
        "num_bad_losses": int((~np.isfinite(column(facts.steps, "loss"))).sum()),
        "settings": settings(facts),
    }
    page = render_page("run_summary.html.jinja", context, package="dct_vl.training.report")
    write_durably(path, page.encode())
    return path


def try_run_summary(run_dir: str | Path) -> None:
    """Write the page at the end of a run, where any failure is a warning: it must not hide how the
    run ended.
    """
    try:
        write_run_summary(run_dir)
    except Exception as error:
        again = shlex.join(["dct-vl", "summary", str(run_dir)])
        print(
            f"warning: {Path(run_dir) / SUMMARY_NAME} could not be written "
            f"({type(error).__name__}: {error}), which changes nothing of the run; "
            f"to try again: {again}",
            file=sys.stderr,
        )


def settings(facts: RunFacts) -> dict[str, str]:
    """The settings that decide most, in words."""
    run = facts.config
    trainer, data, optim, model = run.trainer, run.data, run.optim, run.model
    trained = ", ".join(sorted(trained_parts(model)))
    if model.tuning == "lora":
        trained = f"{trained} and adapters of rank {model.lora.rank}"
    tokenizer = dict(run.tokenizer)
    name = tokenizer.pop("name", "unnamed")
    unit = "packs" if data.packing else "samples"
    clipped = f"clipped at {optim.clip_grad:g}" if optim.clip_grad else "not clipped"
    return {
        "Experiment": run.experiment_name,
        "Tokenizer": f"{name} ({', '.join(f'{key} {value}' for key, value in tokenizer.items())})",
        "Model": model.path,
        "Trained": f"{trained} ({model.tuning})",
        "Precision and layers": f"{model.dtype}, layer spec {model.layer_spec}",
        "Data": data.path,
        "Pixels": f"{data.min_pixels:,} to {data.max_pixels:,} an image after the resize",
        "Longest sample": f"{data.seq_length:,} tokens"
        + (", the length of a pack" if data.packing else ""),
        "Batch": f"{trainer.global_batch_size} {unit} a step, "
        f"{trainer.micro_batch_size} a forward pass",
        "Layout": f"tensor {trainer.tensor_parallel_size} · "
        f"pipeline {trainer.pipeline_parallel_size} · "
        f"context {trainer.context_parallel_size} · data {facts.data_parallel_size or '?'}",
        "Optimizer": f"AdamW, learning rate {optim.lr:g} to {optim.min_lr:g} by a cosine after "
        f"{optim.warmup_steps} warm-up steps, weight decay {optim.weight_decay:g}, "
        f"gradient norm {clipped}",
        "Seed": str(run.seed),
    }


def _headline(facts: RunFacts) -> list[dict[str, str]]:
    steps = facts.steps
    steady = steady_steps(steps)
    first, last = first_and_last_loss(steps)
    rates = {kind: float(np.median(rate)) for kind, rate in token_rates(steady).items()}
    count = min(5, len(steps))
    cards = [
        {
            "value": figure(last),
            "label": "training loss",
            "note": f"mean of the last {count} logged; {figure(first)} over the first {count}",
        }
    ]
    if facts.validation:
        losses = column(facts.validation, "loss")
        finite = np.isfinite(losses)
        note = f"at step {facts.validation[-1]['step']:,}"
        if finite.any():
            best = int(np.where(finite, losses, np.inf).argmin())
            note += (
                f"; lowest {figure(losses[best])} at step {facts.validation[best]['step']:,}"
                if best != len(losses) - 1
                else ", the lowest so far"
            )
        cards.append({"value": figure(losses[-1]), "label": "validation loss", "note": note})
    seconds = float(np.median(column(steady, "seconds")))
    peak = float(np.nanmax(column(steps, "peak_memory_gib")))
    warm_up = " without the first 10" if len(steady) < len(steps) else ""
    return [
        *cards,
        {
            "value": figure(steady_throughput(steps)),
            "label": "samples a second",
            "note": f"median of the steps{warm_up}; {duration(seconds)} a step",
        },
        {
            "value": figure(sum(rates.values()) - rates["padding"]),
            "label": "tokens a second",
            "note": f"{figure(rates['text'])} text and {figure(rates['visual'])} visual; "
            f"{figure(rates['padding'])} of padding are not counted",
        },
        *_device_cards(steady),
        {
            "value": f"{figure(peak)} GiB",
            "label": "peak memory",
            "note": "of the first process: the device's allocator, or all of it on a CPU",
        },
    ]


def _device_cards(steady: Steps) -> list[dict[str, str]]:
    """How busy the device was, and how long it waited, as far as the steps say."""
    tflops, mfu, wait = (median(steady, name) for name in ("tflops", "mfu", "data_wait_share"))
    cards = []
    if mfu is not None:
        note = f"of the device's peak; {figure(tflops)} TFLOP/s of useful work a device"
        cards.append({"value": percent(mfu), "label": "MFU", "note": note})
    elif tflops is not None:
        note = "a process; the device's peak is not known, so there is no MFU"
        cards.append({"value": figure(tflops), "label": "TFLOP/s of useful work", "note": note})
    if wait is not None:
        note = "median share of a step in which the first process waited for its loader"
        cards.append({"value": percent(wait), "label": "wait for data", "note": note})
    return cards


def _charts(facts: RunFacts) -> list[dict[str, str | Markup]]:
    steps = facts.steps
    x = column(steps, "step")
    loss = [Line(label="training", x=x, y=column(steps, "loss"), smoothed="mean")]
    if facts.validation:
        validation_x, validation_y = (column(facts.validation, n) for n in ("step", "loss"))
        loss.append(
            Line(label="validation", x=validation_x, y=validation_y, color=2, style="points")
        )
    marks = facts.restarts
    charts: list[dict[str, str | Markup]] = [
        {
            "caption": "Loss: moving mean, with the single steps behind it",
            "svg": line_chart(
                "loss", loss, y_label="loss", description="Loss over steps", marks=marks
            ),
        }
    ]
    busy = (
        ("mfu", "MFU: useful work as a share of the device's peak", "%", True, 100)
        if median(steps, "mfu") is not None
        else ("tflops", "Useful work of a process", "TFLOP/s", True, 1)
    )
    plain = [
        ("grad_norm", "Gradient norm before clipping", "gradient norm", True, 1),
        ("lr", "Learning rate", "learning rate", False, 1),
        ("samples_per_second", "Samples a second", "samples/s", True, 1),
        ("seconds", "Step time", "seconds", True, 1),
        busy,
        ("data_wait_share", "Share of a step that waits for data", "%", True, 100),
        ("peak_memory_gib", "Peak memory so far", "GiB", False, 1),
    ]
    for name, caption, y_label, varies, unit in plain:
        y = unit * column(steps, name)
        if np.isfinite(y).any():
            svg = line_chart(
                name.replace("_", "-"),
                [Line(label=None, x=x, y=y, smoothed="median" if varies else None)],
                y_label=y_label,
                description=f"{caption} over steps",
                marks=marks,
                from_zero=True,
            )
            highest = int(np.nanargmax(y))
            # the frame may leave it out
            note = f"; highest {figure(y[highest])} at step {steps[highest]['step']:,}"
            charts.append({"caption": caption + note if varies else caption, "svg": svg})
    rates = token_rates(steps)
    areas = [
        Area(label=kind, values=rates[kind], color=color)  # type: ignore[arg-type]
        for color, kind in enumerate(TOKEN_KINDS, start=1)
    ]
    svg = area_chart("tokens", x, areas, y_label="tokens/s", description="Tokens a second by kind")
    charts.insert(4, {"caption": "Tokens a second by kind, added up (moving medians)", "svg": svg})
    return charts
