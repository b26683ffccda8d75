"""RUN/summary.html of runs that are whole, cut off, resumed, tiny or odd."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest

from dct_vl.cli import main
from dct_vl.runs.checkpoint_files import META_NAME
from dct_vl.runs.config.schema import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainerConfig
from dct_vl.runs.run_files import (
    ENVIRONMENT_NAME,
    STEPS_NAME,
    VALIDATION_NAME,
    append_json_line,
    run_dir,
    write_provenance,
)
from dct_vl.training.report.run_summary import settings, try_run_summary, write_run_summary

#: attributes through which a page can load something
_LOADING = ("src", "href", "srcset", "poster", "data", "action")


def step_line(step: int, *, loss: float | None = None, seconds: float = 0.5) -> dict[str, object]:
    return {
        "step": step,
        "loss": 5.0 / step if loss is None else loss,
        "lr": 1e-3,
        "grad_norm": 2.0,
        "num_samples": 8,
        "num_text_tokens": 400,
        "num_visual_tokens": 100,
        "num_padding_tokens": 60,
        "seconds": seconds,
        "samples_per_second": 8 / seconds,
        "peak_memory_gib": 1.5,
        "time": 1_700_000_000.0 + step,
    }


def make_run(
    tmp_path: Path,
    steps: list[dict[str, object]],
    *,
    name: str = "small",
    trainer: TrainerConfig | None = None,
) -> Path:
    run = RunConfig(
        experiment_name=name,
        log_dir=str(tmp_path),
        tokenizer={"name": "dct28_420", "family": "block", "cell": 28},
        model=ModelConfig(path="some/model"),
        data=DataConfig(path="some/shards"),
        trainer=trainer or TrainerConfig(max_steps=30),
    )
    folder = run_dir(run)
    write_provenance(run, folder)
    for line in steps:
        append_json_line(folder / STEPS_NAME, line)
    return folder


def parse(page: str) -> Element:
    """The page's tree; raises html5lib's ParseError where the page breaks a rule of HTML."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(page)


def text_of(tree: Element) -> str:
    return re.sub(r"\s+", " ", "".join(tree.itertext()))


def check_self_contained(page: str) -> Element:
    tree = parse(page)
    for element in tree.iter():
        for attribute, value in element.attrib.items():
            if str(attribute).split("}")[-1] in _LOADING:
                assert value.startswith(("data:", "#")), (element.tag, attribute, value)
    assert not list(tree.iter("script"))
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    ids = [element.attrib["id"] for element in tree.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:url\(|href=")#([^)"]+)', page)
    assert set(targets) <= set(ids)
    return tree


def charts(tree: Element) -> dict[str, Element]:
    found = [element for element in tree.iter() if str(element.tag).endswith("svg")]
    return {element.attrib["aria-label"]: element for element in found}


def test_a_finished_run_shows_its_figures(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [step_line(step) for step in range(1, 31)])
    for step in (10, 20, 30):
        append_json_line(folder / VALIDATION_NAME, {"step": step, "loss": 1.0 + (step == 30)})
    ledger = folder / "ledger"
    ledger.mkdir()
    append_json_line(ledger / "dp0000.jsonl", {"step": 1, "keys": ["a", "b", "c"]})
    append_json_line(ledger / "dp0000.jsonl", {"step": 2, "keys": ["a"]})
    rejects = folder / "rejects"
    rejects.mkdir()
    for key in ("x", "y", "x"):
        line = {"key": key, "reason": "too_long", "detail": ""}
        append_json_line(rejects / "one.jsonl", line)
    kept = folder / "checkpoints" / "step-00000030"
    kept.mkdir(parents=True)
    (kept / META_NAME).write_text(json.dumps({"step": 30, "world_size": 2}))

    page = write_run_summary(folder)

    assert page == folder / "summary.html"
    tree = check_self_contained(page.read_text())
    text = text_of(tree)
    assert "Finished: all 30 steps are done." in text
    # mean of 5/26 … 5/30, and of 5/1 … 5/5
    assert "0.179 training loss mean of the last 5 logged; 2.28 over the first 5" in text
    assert "2.00 validation loss at step 30; lowest 1.00 at step 10" in text
    assert "16.0 samples a second median of the steps without the first 10; 0.50 s a step" in text
    assert "1,000 tokens a second 800 text and 200 visual; 120 of padding" in text
    assert "1.50 GiB peak memory" in text
    assert "4 samples were consumed in 2 steps. Of 3 different ones, 2 came once, 1 came twice" in (
        text
    )
    assert "Left out of training: 2 too long 2" in text
    assert "step-00000030" in text
    assert "dct28_420 (family block, cell 28)" in text
    assert {
        "Loss over steps",
        "Learning rate over steps",
        "Gradient norm before clipping over steps",
        "Samples a second over steps",
        "Tokens a second by kind",
        "Step time over steps",
        "Peak memory so far over steps",
    } == set(charts(tree))


def test_how_busy_the_device_was_is_shown_as_far_as_it_is_known(tmp_path: Path) -> None:
    busy = {"tflops": 450.0, "mfu": 0.455, "data_wait_share": 0.021}
    tree = check_self_contained(page_of(tmp_path, "gpu", busy))
    assert re.search(r"45\.5\s% MFU of the device's peak; 450 TFLOP/s", text_of(tree))
    assert re.search(r"2\.1\s% wait for data", text_of(tree))
    wait = "Share of a step that waits for data over steps"
    mfu = "MFU: useful work as a share of the device's peak over steps"
    assert {wait, mfu} <= set(charts(tree))

    tree = check_self_contained(page_of(tmp_path, "cpu", {**busy, "mfu": None}))
    assert "450 TFLOP/s of useful work" in text_of(tree)
    assert {wait, "Useful work of a process over steps"} <= set(charts(tree))
    assert mfu not in charts(tree)


def page_of(tmp_path: Path, name: str, fields: dict[str, float | None]) -> str:
    """The page of a run whose steps have these fields too."""
    steps = [{**step_line(n), **fields} for n in range(1, 31)]
    return write_run_summary(make_run(tmp_path, steps, name=name)).read_text()


def test_the_loss_chart_draws_training_and_validation(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [step_line(step) for step in range(1, 31)])
    without = text_of(charts(parse(write_run_summary(folder).read_text()))["Loss over steps"])
    append_json_line(folder / VALIDATION_NAME, {"step": 10, "loss": 1.0})
    page = write_run_summary(folder).read_text()
    assert "validation" not in without
    assert "validation" in text_of(charts(parse(page))["Loss over steps"])
    assert "var(--series-2)" in page


@pytest.mark.parametrize(
    ("done", "trainer", "state"),
    [
        (12, TrainerConfig(max_steps=30), "step 12 of 30."),
        (12, TrainerConfig(max_steps=30, stop_at_step=12), "Stopped as asked after step 12"),
        (1, TrainerConfig(max_steps=1), "Finished: all 1 steps"),
    ],
)
def test_the_state_of_the_run_is_said(
    tmp_path: Path, done: int, trainer: TrainerConfig, state: str
) -> None:
    lines = [step_line(step) for step in range(1, done + 1)]
    tree = check_self_contained(
        write_run_summary(make_run(tmp_path, lines, trainer=trainer)).read_text()
    )
    assert state in text_of(tree)
    assert len(charts(tree)) == 7


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    tree = check_self_contained(write_run_summary(make_run(tmp_path, [])).read_text())
    assert "No step was logged yet." in text_of(tree)
    assert not charts(tree)


def test_steps_done_twice_count_once_and_are_named(tmp_path: Path) -> None:
    lines = [step_line(step, loss=9.0) for step in range(1, 28)]
    lines += [step_line(step, loss=3.0) for step in range(21, 31)]
    folder = make_run(tmp_path, lines)
    with open(folder / STEPS_NAME, "ab") as file:
        file.write(b'{"step": 31, "lo')  # killed while it wrote
    text = text_of(check_self_contained(write_run_summary(folder).read_text()))
    assert "7 steps were done again after a restart (dotted lines: from step 21)" in text
    assert "3.00 training loss mean of the last 5" in text
    assert "Finished: all 30 steps" in text


def test_a_resumed_run_that_catches_up_is_not_finished(tmp_path: Path) -> None:
    lines = [step_line(step) for step in (*range(1, 31), *range(21, 24))]
    text = text_of(parse(write_run_summary(make_run(tmp_path, lines)).read_text()))
    assert "step 23 of 30." in text


def test_losses_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    lines = [step_line(step, loss=float("nan")) for step in range(1, 31)]
    tree = check_self_contained(write_run_summary(make_run(tmp_path, lines)).read_text())
    assert "The loss of 30 logged steps is not a finite number." in text_of(tree)
    assert "– training loss" in text_of(tree)


def test_batches_of_packs_are_called_so() -> None:
    run = RunConfig(
        tokenizer={"name": "pixel"},
        model=ModelConfig(path="m"),
        data=DataConfig(path="d", seq_length=4096, packing=True),
        optim=OptimConfig(clip_grad=0),
    )
    facts: Any = SimpleNamespace(config=run, data_parallel_size=1)
    said = settings(facts)
    assert said["Batch"] == "4 packs a step, 1 a forward pass"
    assert said["Longest sample"] == "4,096 tokens, the length of a pack"
    assert said["Optimizer"].endswith("gradient norm not clipped")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = "$x_<script>alert(1)<%"
    folder = make_run(tmp_path, [step_line(1)], name=name)
    page = write_run_summary(folder).read_text()
    assert name in text_of(check_self_contained(page))


def test_the_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    folder = make_run(tmp_path, [])
    lines = [step_line(step, loss=5 + (step % 97) / 50) for step in range(1, 20_001)]
    (folder / STEPS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert write_run_summary(folder).stat().st_size < 600_000


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run's folder"):
        write_run_summary(tmp_path)


def test_a_page_that_cannot_be_written_is_a_warning_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong: here a TypeError, from a damaged file that only the page reads."""
    folder = make_run(tmp_path, [step_line(1)], name="a run")
    environment = (folder / ENVIRONMENT_NAME).read_text()
    (folder / ENVIRONMENT_NAME).write_text("[1]")
    with pytest.raises(TypeError):
        write_run_summary(folder)

    try_run_summary(folder)

    said = capsys.readouterr().err
    assert f"warning: {folder}/summary.html could not be written (TypeError: " in said
    command = re.search("to try again: dct-vl (.*)", said)
    assert command
    (folder / ENVIRONMENT_NAME).write_text(environment)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command[1]))
    assert ended.value.code == 0
    assert (folder / "summary.html").is_file()


def test_the_page_of_no_run_is_refused_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["summary", str(tmp_path)], ["summary"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
    assert "is not a run's folder" in capsys.readouterr().err
