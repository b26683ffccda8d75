"""report.html of a quickstart."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import orjson
from markupsafe import Markup

from data_prep.durable import write_durably
from dct_vl.evaluation.compare.figures import losses
from dct_vl.evaluation.compare.gallery import first_of_each_source, gallery
from dct_vl.evaluation.compare.quickstart import NUM_SAMPLES, Quickstart
from dct_vl.evaluation.compare.quickstart_figures import Figures, count, summary
from dct_vl.evaluation.compare.report import difference_text
from dct_vl.evaluation.compare.runs import ComparedRun
from dct_vl.pages.charts import Line, line_chart
from dct_vl.pages.page import figure, percent, render_page
from dct_vl.runs.series import TOKEN_KINDS, steady_steps, token_rates

REPORT_NAME = "report.html"
SUMMARY_NAME = "summary.json"

#: what comes after the quickstart: (what it does, what to type)
NEXT_COMMANDS = (
    ("Build and enter the GPU environment", "bash make-and-run-docker.sh"),
    (
        "Turn your data (a Cambrian-like JSON and its tars or folders in D) into shards in W",
        "python -m data_prep cambrian --data-dir D --output-dir W",
    ),
    ("Make the shards an Energon dataset", "python -m data_prep prepare W --split 8,1,1"),
    (
        "Fine-tune Qwen2-VL; all variables stand at the top of the script",
        "TOKENIZER=dct28_420 DATA_PATH=W MODEL_PATH=M bash launch/qwen_launch.sh",
    ),
    (
        "Compare tokenizers: one run each, on the same samples",
        "dct-vl fit -m tokenizer=pixel,dct14,dct28_420 data.path=W model.path=M",
    ),
    (
        "Ask a run about held-out images",
        "dct-vl answers RUN --output RUN/answers.jsonl",
    ),
    (
        "Put runs beside each other: scores against cost, and where they disagree",
        "dct-vl compare RUN OTHER_RUN --output compare",
    ),
    (
        "Make a Hugging Face folder of a run, and ask it without this project",
        "dct-vl export RUN HF_DIR --outside 40",
    ),
)


def write_quickstart(data: Quickstart, output_dir: str | Path) -> Path:
    """Write report.html, which needs no other file, and summary.json; return the page's path.

    Args:
        data: from `read_quickstart`.
        output_dir: made where it is missing.

    Raises:
        ValueError: answers that cannot be compared.
    """
    folder = Path(output_dir)
    figures = count(data)
    (paired,) = (one.paired for one in figures.found.sets)
    keys = [key for key in first_of_each_source(paired, NUM_SAMPLES) if key in data.samples]
    runs = [data.main, data.control]
    entries = gallery(paired.items, runs, keys, data.samples)
    shares = {source.name: source.main.share for source in figures.sources}
    entries.sort(key=lambda entry: -shares[entry.source])
    context = {
        "data": data,
        "figures": figures,
        "names": [run.name for run in runs],
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "rows": _costs(figures, runs),
        "proofs": _proofs(figures, data),
        "loss_chart": _loss_chart(runs),
        "rates": _rates(runs),
        "entries": entries,
        "commands": NEXT_COMMANDS,
        "difference_text": difference_text,
    }
    page = render_page("quickstart.html.jinja", context, package="dct_vl.evaluation.compare")
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / REPORT_NAME, page.encode())
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_durably(folder / SUMMARY_NAME, orjson.dumps(summary(figures, data), option=options))
    return folder / REPORT_NAME


def _costs(figures: Figures, runs: list[ComparedRun]) -> list[tuple[str, list[str]]]:
    """(label, of each run) of what was learnt, and of what it cost."""
    costs = [run.cost for run in runs]
    accuracies = (figures.total.main, figures.total.control)
    flops = [None if cost.flops is None else cost.flops / 1e9 for cost in costs]
    return [
        ("right answers", [percent(a.share) for a in accuracies]),
        ("95 % interval", [" to ".join(map(percent, a.interval)) for a in accuracies]),
        ("visual tokens an image", [figure(tokens) for tokens in figures.tokens_per_image]),
        ("GFLOP a sample, forward", [figure(value) for value in flops]),
        ("training samples a second", [figure(cost.samples_per_second) for cost in costs]),
        ("peak memory, GiB", [figure(cost.peak_memory_gib) for cost in costs]),
        ("training loss", [f"{figure(first)} → {figure(last)}" for first, last in figures.losses]),
        ("validation loss", [figure(facts.val_loss) for facts in figures.found.runs]),
    ]


def _proofs(figures: Figures, data: Quickstart) -> list[dict[str, str]]:
    resume = data.resume
    cards = [
        {
            "value": figure(resume.max_abs_loss_diff),
            "label": "loss difference after resuming",
            "note": f"The largest one over {resume.num_steps:,} steps after the checkpoint of step "
            f"{resume.from_step:,}; 0 is equal to the last digit.",
        }
    ]
    if data.export and figures.export:
        cards.append(
            {
                "value": f"{figures.num_export_differing:,} of {figures.export.num_answers:,}",
                "label": "answers changed by the export",
                "note": f"{percent(figures.export.share)} right in plain transformers without this "
                f"project; logits differ by up to {figure(data.export.max_abs_logit_diff)}.",
            }
        )
    if data.num_prepared is not None:
        cards.append(
            {
                "value": f"{data.num_prepared:,}",
                "label": "samples prepared",
                "note": f"{sum(data.rejected.values()):,} left out, each with its reason.",
            }
        )
    return cards


def _loss_chart(runs: list[ComparedRun]) -> Markup:
    curves = [losses(run) for run in runs]
    lines = [
        Line(
            label=run.name,
            x=of["steps"],
            y=of["loss"],
            color=color,
            style="solid" if color == 1 else "dashed",
            smoothed="mean",
        )
        for color, (run, of) in enumerate(zip(runs, curves, strict=True), start=1)
    ]
    lines += [
        Line(
            label=f"{run.name}, validation",
            x=of["val_steps"],
            y=of["val_loss"],
            color=color,
            style="points",
        )
        for color, (run, of) in enumerate(zip(runs, curves, strict=True), start=1)
        if len(of["val_steps"])
    ]
    return line_chart("loss", lines, y_label="loss", description="Loss of both runs over steps")


def _rates(runs: list[ComparedRun]) -> dict[str, list[float]]:
    """Median tokens a second of each kind, of each run."""
    rates = [token_rates(steady_steps(run.steps)) for run in runs]
    return {kind: [float(np.median(of[kind])) for of in rates] for kind in TOKEN_KINDS}
