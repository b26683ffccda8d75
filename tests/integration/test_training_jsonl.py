"""A run straight from JSONL files: the same ledger, checks and exact resume as from shards."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from any_format import drawn_talks
from command_line import invoke

from dct_vl.runs.ledger import summarize
from dct_vl.runs.run_files import STEPS_NAME, read_json_lines

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lines(drawn, tmp_path_factory) -> tuple[str, ...]:
    """Overrides for 30 conversations to train on, every other as messages, one of them broken, and
    eight to validate on.
    """
    folder = tmp_path_factory.mktemp("lines")
    talks = drawn_talks(drawn, 37)
    for talk in talks:
        for path, data in talk.images.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
    entries = [
        talk.llava if number % 2 else {"id": talk.id, "messages": talk.in_parts}
        for number, talk in enumerate(talks)
    ]
    texts = [json.dumps(entry) for entry in entries]
    (folder / "train.jsonl").write_text("\n".join([*texts[:20], "{", *texts[20:29]]))
    (folder / "held.jsonl").write_text("\n".join(texts[29:]))
    return f"data.path={folder}/train.jsonl", f"data.val_path={folder}/held.jsonl"


OPTIONS = ("trainer.max_steps=16", "trainer.save_every=2", "trainer.keep_last=1")


def test_a_killed_run_of_lines_ends_as_if_it_had_not_been(train, lines):
    """It goes over the file twice."""
    whole = train("lines", *lines, *OPTIONS)
    folder = train.folder("lines_killed")
    process = subprocess.Popen(
        train.command("lines_killed", (*lines, *OPTIONS)),
        env=train.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(read_json_lines(folder / STEPS_NAME)) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was over before it could be killed"
    run = train("lines_killed", *lines, *OPTIONS)
    for name in ("loss", "grad_norm", "num_text_tokens", "num_visual_tokens"):
        assert run.values(name) == whole.values(name), name
    assert run.ledger() == whole.ledger()
    assert run.validation() == whole.validation()
    assert min(whole.values("num_visual_tokens")) > 0

    found = summarize(folder)
    assert (found.num_samples, found.num_rejected, found.num_never) == (30, 1, 0)
    first = found.epochs[0]
    assert (first.num_once, first.num_twice) == (29, 0)
    (reject,) = {line["key"]: line for line in _rejects(folder)}.values()
    assert (reject["key"], reject["reason"]) == ("20", "schema")
    assert "line 21 of train.jsonl: malformed_entry: the line is no JSON" in reject["detail"]
    assert reject["file"] == lines[0].partition("=")[2]

    # what answers reads the file that the run has validated on
    answers = ("--limit", "3", "--output", folder / "answers.jsonl")
    done = invoke("answers", folder, *answers)
    assert done.exit_code == 0, done.output
    assert {line["key"] for line in read_json_lines(folder / "answers.jsonl")} == {"0", "1", "2"}


def _rejects(folder: Path) -> list[dict[str, str]]:
    return [line for file in (folder / "rejects").iterdir() for line in read_json_lines(file)]


def test_what_is_missing_is_said_before_the_start(train, lines):
    refused = train.attempt("no_held", lines[0])
    assert refused.returncode == 2
    said = "train.jsonl is all to train on and has no val split: set data.val_path to a file"
    assert said in refused.stderr
    assert not train.folder("no_held").exists()
