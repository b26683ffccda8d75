"""A quickstart's runs, answers and export, small enough to count by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element

import html5lib
import numpy as np

from dct_vl.evaluation.quickstart import (
    ExportProof,
    QuickstartResult,
    QuickstartRun,
    ResumeProof,
    SamplePicture,
)
from dct_vl.runs.run_files import STEPS_NAME, append_json_line


def write_run(folder: Path, losses: list[float], rates: list[float]) -> Path:
    """A run's folder with its steps."""
    folder.mkdir(parents=True)
    for step, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        line = {
            "step": step,
            "loss": loss,
            "samples_per_second": rate,
            "seconds": 4 / rate,
            "num_text_tokens": 200,
            "num_visual_tokens": 40,
            "num_padding_tokens": 10,
        }
        append_json_line(folder / STEPS_NAME, line)
    return folder


def answer(key: str, turn: int, right: bool, **changes: object) -> dict[str, object]:
    """A line of `evaluation answers`."""
    line: dict[str, object] = {
        "key": key,
        "turn": turn,
        "question": "<image>\nWhich shape?" if turn == 1 else "Which color?",
        "truth": "circle",
        "answer": "circle" if right else "square",
        "correct": right,
        "source": "shapes",
        "num_visual_tokens": 9,
    }
    return line | changes


def answers(path: Path, rights: str, **changes: object) -> Path:
    """Two turns about one picture, one about two pictures, one without: r is right, w wrong."""
    one, two, pair, text = (letter == "r" for letter in rights)
    lines = [
        answer("s1", 1, one, **changes),
        answer("s1", 3, two),
        answer("p1", 1, pair, question="<image><image>Same?", source="pairs", num_visual_tokens=24),
        answer("t1", 1, text, question="2 + 2?", source="text", num_visual_tokens=0),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def exported(path: Path, rights: str) -> Path:
    """Of the first picture only, and of the text: as the exported folder was asked about fewer."""
    one, text = (letter == "r" for letter in rights)
    lines = [answer("s1", 1, one), answer("t1", 1, text, num_visual_tokens=0)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_result(tmp_path: Path) -> QuickstartResult:
    """Two runs of a few steps with answers, a picture, and an export."""
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 1.0]
    rates = [1.0] * 10 + [30.0, 50.0, 40.0]
    generator = np.random.default_rng(0)
    picture = SamplePicture(
        key="s1",
        original=generator.integers(0, 256, (60, 80, 3), dtype=np.uint8),
        seen=generator.integers(0, 256, (56, 84, 3), dtype=np.uint8),
        seen_by_control=generator.integers(0, 256, (28, 56, 3), dtype=np.uint8),
    )
    return QuickstartResult(
        main=QuickstartRun(
            tokenizer="dct28_420",
            run_dir=write_run(tmp_path / "main", losses, rates),
            answers=answers(tmp_path / "main.jsonl", "rrwr"),
        ),
        control=QuickstartRun(
            tokenizer="pixel_downscale",
            run_dir=write_run(tmp_path / "control", losses[:3], rates[-3:]),
            answers=answers(tmp_path / "control.jsonl", "rwww"),
        ),
        blank_answers=answers(tmp_path / "blank.jsonl", "wwrr"),
        resume=ResumeProof(from_step=20, num_steps=7, max_abs_loss_diff=0.0),
        export=ExportProof(
            folder=tmp_path / "hf",
            max_abs_logit_diff=0.00025,
            num_prompts=5,
            answers=exported(tmp_path / "hf.answers.jsonl", "rw"),
        ),
        pictures=(picture,),
        rejected={"truncated_image": 12, "missing_image": 3},
        num_prepared=985,
        seconds_total=61.0,
    )


def page_of(folder: Path) -> tuple[str, Element]:
    """The report's text and tree; raises html5lib's ParseError where it breaks a rule of HTML."""
    page = (folder / "report.html").read_text()
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return page, parser.parse(page)


def text_of(element: Element) -> str:
    """What a reader sees, single spaces between words."""
    return re.sub(r"\s+", " ", "".join(element.itertext()))
