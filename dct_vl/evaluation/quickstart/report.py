"""report.html and summary.json of a quickstart."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from markupsafe import Markup

from data_prep.durable import write_durably
from dct_vl.evaluation.compare.report import PAGE_NAME
from dct_vl.evaluation.quickstart.data import COMPARE_FOLDER, QuickstartResult
from dct_vl.evaluation.quickstart.figures import Figures, RunFigures, collect, summary
from dct_vl.evaluation.quickstart.gallery import gallery
from dct_vl.pages.page import figure, percent
from dct_vl.runs.series import column, token_rates
from dct_vl.training.report import Line, line_chart, steady_steps, write_page

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
        "Ask a run about held-out pictures",
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


def write_quickstart_report(output_dir: str | Path, data: QuickstartResult) -> None:
    """Write report.html, which needs no other file, and summary.json.

    Args:
        output_dir: made where it is missing.
        data: two runs, their answers, the resume proof, sample pictures and counts.

    Raises:
        ValueError: a run without a step, answers that cannot be compared, or a picture of a sample
            that was not asked about.
    """
    folder = Path(output_dir)
    figures = collect(data)
    names = (data.main.tokenizer, data.control.tokenizer)
    context = {
        "data": data,
        "figures": figures,
        "written": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "cards": _headline(figures, data),
        "loss_chart": _loss_chart(figures),
        "rates": [_rates(figures.main), _rates(figures.control)],
        "entries": gallery(data.pictures, figures.main.answers, figures.control.answers, names),
        "commands": NEXT_COMMANDS,
        "compare_page": f"{COMPARE_FOLDER}/{PAGE_NAME}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_page(
        folder / REPORT_NAME,
        "quickstart.html.jinja",
        context,
        package="dct_vl.evaluation.quickstart",
    )
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    write_durably(folder / SUMMARY_NAME, orjson.dumps(summary(figures, data), option=options))


def _headline(figures: Figures, data: QuickstartResult) -> list[dict[str, str]]:
    main, control, resume = figures.main, figures.control, data.resume
    cards = [
        {
            "value": percent(main.accuracy.share),
            "label": "right answers",
            "note": f"of {main.accuracy.num_answers:,} questions about held-out pictures, word for "
            f"word, with {main.tokenizer}.",
        },
        {
            "value": percent(figures.blank_accuracy.share),
            "label": "with blank pictures",
            "note": "The same model and questions, every picture an even grey: what can be "
            "guessed without looking.",
        },
        {
            "value": percent(control.accuracy.share),
            "label": "control",
            "note": f"The same training and questions with {control.tokenizer}.",
        },
        {
            "value": figure(main.pictures.tokens_per_picture),
            "label": "visual tokens a picture",
            "note": "The mean over the held-out pictures; "
            f"{figure(control.pictures.tokens_per_picture)} for the control.",
        },
        {
            "value": figure(main.samples_per_second),
            "label": "samples a second",
            "note": "Median of training on this machine, without the first 10 steps; "
            f"{figure(control.samples_per_second)} for the control.",
        },
        {
            "value": f"{figure(main.train_loss_first)} → {figure(main.train_loss_last)}",
            "label": "training loss",
            "note": "Means of the first and of the last five logged steps.",
        },
        {
            "value": figure(resume.max_abs_loss_diff),
            "label": "loss difference after resuming",
            "note": f"The largest one over {resume.num_steps:,} steps after the checkpoint of step "
            f"{resume.from_step:,}; 0 is equal to the last digit.",
        },
    ]
    if data.export and figures.export:
        cards.append(
            {
                "value": percent(figures.export.accuracy.share),
                "label": "right answers after the export",
                "note": f"of {figures.export.accuracy.num_answers:,} questions, asked in plain "
                "transformers without this project; logits differ by up to "
                f"{figure(data.export.max_abs_logit_diff)}.",
            }
        )
    return cards


def _loss_chart(figures: Figures) -> Markup:
    lines = []
    for color, run in ((1, figures.main), (2, figures.control)):
        lines.append(
            Line(
                label=run.tokenizer,
                x=column(run.steps, "step"),
                y=column(run.steps, "loss"),
                color=color,
                style="solid" if color == 1 else "dashed",
                smoothed="mean",
            )
        )
    for color, run in ((1, figures.main), (2, figures.control)):
        if run.validation:
            lines.append(
                Line(
                    label=f"{run.tokenizer}, validation",
                    x=column(run.validation, "step"),
                    y=column(run.validation, "loss"),
                    color=color,
                    style="points",
                )
            )
    return line_chart("loss", lines, y_label="loss", description="Loss of both runs over steps")


def _rates(run: RunFigures) -> dict[str, Any]:
    steady = steady_steps(run.steps)
    return {
        "run": run,
        "seconds": float(np.median(column(steady, "seconds"))),
        "tokens": {kind: float(np.median(rate)) for kind, rate in token_rates(steady).items()},
    }
