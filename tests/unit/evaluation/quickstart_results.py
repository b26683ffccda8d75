"""A quickstart's runs, answers and export, small enough to count by hand."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from xml.etree.ElementTree import Element

import compared_runs
import html5lib
import numpy as np
from PIL import Image

from dct_vl.evaluation.compare import ComparedRun, read_runs
from dct_vl.evaluation.compare.gallery import Asked
from dct_vl.evaluation.compare.quickstart import ExportProof, Quickstart, ResumeProof
from dct_vl.evaluation.compare.results import read_results

LOSSES = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0, 2.0, 2.0, 1.0]
RATES = [1.0] * 10 + [30.0, 50.0, 40.0]


def answer(key: str, turn: int, right: bool, **changes: object) -> dict[str, object]:
    """A line of `dct-vl answers`."""
    question = "<image>\nWhich shape?" if turn == 1 else "Which color?"
    line = compared_runs.answer(key, right, turn=turn, question=question, truth="circle")
    return {**line, "answer": "circle" if right else "square", **changes}


def answers(path: Path, rights: str, **changes: object) -> Path:
    """Two turns about one image, one about two images, one without: r is right, w wrong."""
    one, two, pair, text = (letter == "r" for letter in rights)
    lines = [
        answer("s1", 1, one, **changes),
        answer("s1", 3, two),
        answer("p1", 1, pair, question="<image><image>Same?", source="pairs", num_visual_tokens=24),
        answer("t1", 1, text, question="2 + 2?", source="text", num_visual_tokens=0),
    ]
    return compared_runs.write_lines(path, lines)


def exported(path: Path, rights: str) -> Path:
    """Of the first image only, and of the text: as the exported folder was asked about fewer."""
    one, text = (letter == "r" for letter in rights)
    lines = [answer("s1", 1, one), answer("t1", 1, text, num_visual_tokens=0)]
    return compared_runs.write_lines(path, lines)


def png(image: np.ndarray) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def runs_of(main: Path, control: Path, answers: dict[str, Path]) -> tuple[ComparedRun, ComparedRun]:
    """Both runs under the names of their tokenizers."""
    from dataclasses import replace

    ours, theirs = (
        replace(r, name=r.tokenizer) for r in read_runs([main, control], answers=answers)
    )
    return ours, theirs


def make_result(tmp_path: Path) -> Quickstart:
    """Two runs of a few steps with answers, an image, and an export."""
    options = {"data": "none", "model": "none"}
    folders = (
        compared_runs.write_run(tmp_path / "main", losses=LOSSES, rates=RATES, **options),
        compared_runs.write_run(
            tmp_path / "control",
            losses=LOSSES[:3],
            rates=RATES[-3:],
            overrides=["tokenizer=pixel_downscale"],
            **options,
        ),
    )
    files = {
        "main": answers(tmp_path / "main.jsonl", "rrwr"),
        "control": answers(tmp_path / "control.jsonl", "rwww"),
    }
    main, control = runs_of(*folders, files)
    image = np.random.default_rng(0).integers(0, 256, (60, 170, 3), dtype=np.uint8)
    return Quickstart(
        main=main,
        control=control,
        blank=read_results(answers(tmp_path / "blank.jsonl", "wwrr")),
        resume=ResumeProof(from_step=20, num_steps=7, max_abs_loss_diff=0.0),
        export=ExportProof(
            folder=tmp_path / "hf",
            max_abs_logit_diff=0.00025,
            num_prompts=5,
            answers=read_results(exported(tmp_path / "hf.answers.jsonl", "rw")),
        ),
        samples={"s1": Asked(images=(png(image),), question="Which shape?", truth="circle")},
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


def summary_of(folder: Path) -> dict[str, object]:
    """The report's figures."""
    return json.loads((folder / "summary.json").read_text())
