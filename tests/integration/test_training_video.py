"""Shards with videos and pictures, from tar files to training steps."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke as run_verb
from conftest import ROOT, Run, Trainer
from mixed_set import ANSWER, NUM_KEPT, NUM_KINDS, write_mixed_set
from PIL import Image

from dct_vl.inputs.rejects import count_notes, count_rejects
from dct_vl.inputs.shard_reader import read_split
from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from sample_videos import FASTSTART, noise_frames, sound, video

pytestmark = pytest.mark.slow

TOKENIZERS = ("dct28_420_t8", "pixel")
#: ten shards, eight of them for training
NUM_SHARDS, PER_SHARD, VAL_SHARD = 10, 4, 8
SETTINGS = (
    "trainer.max_steps=3",
    "trainer.val_every=3",
    "data.video_fps=8",
    "data.video_min_pixels=3136",
    "data.video_max_pixels=6272",
    "data.shuffle_buffer_size=0",
)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((56, 84, 3), 90, dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def video_shards(tmp_path_factory) -> Path:
    """Of every four samples: two videos and a picture; a cut MP4; a WebM; sound alone. The split
    val has one of each, and a sample of text and one of a picture.
    """
    root = tmp_path_factory.mktemp("video_shards")
    frames = noise_frames(33)
    mp4, webm = video(frames, options=FASTSTART), video(frames, container="webm", codec="libvpx")
    kinds = [
        (
            "First <video>, then <image>, then <video>.",
            {"0.mp4": mp4, "1.mp4": mp4, "jpg": picture()},
        ),
        ("<video>\nWhat?", {"mp4": mp4[: len(mp4) // 2]}),
        ("What?", {"webm": webm}),
        ("<video>\nWhat?", {"mp4": sound()}),
        ("Which word?", {}),
        ("<image>\nWhat?", {"jpg": picture()}),
    ]
    for shard in range(NUM_SHARDS):
        with tarfile.open(root / f"shard-{shard:06d}.tar", "w") as tar:
            # every shard starts with another kind: loaders take a sample of each in turn
            held_out = [4, 5] if shard == VAL_SHARD else []
            for kind in [*((shard + place) % PER_SHARD for place in range(PER_SHARD)), *held_out]:
                question, media = kinds[kind]
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "Noise."}]
                record = json.dumps({"conversations": turns}).encode()
                for part, data in {"json": record, **media}.items():
                    info = tarfile.TarInfo(f"s{shard}k{kind}.{part}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    prepare = ["-m", "data_prep", "prepare", str(root), "--split", "8,1,1"]
    subprocess.run([sys.executable, *prepare], check=True, cwd=ROOT, capture_output=True)
    return root


@pytest.fixture(scope="module")
def runs(video_shards, tiny_model, tmp_path_factory) -> dict[str, Run]:
    """By tokenizer."""
    train = Trainer(video_shards, tiny_model, tmp_path_factory.mktemp("runs"))
    return {name: train(name, *SETTINGS, f"tokenizer={name}") for name in TOKENIZERS}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_videos_train_and_what_is_damaged_is_counted(runs, tokenizer):
    run = runs[tokenizer]
    losses = run.values("loss")
    assert len(losses) == 3
    assert all(3 < loss < 12 for loss in losses)
    assert 3 < run.validation()[3] < 12
    assert min(run.values("num_visual_tokens")) > 0
    places = {int(key[-1]) for keys in run.ledger().values() for key in keys}
    assert places == {0, 1, 2}
    notes = count_notes(run.folder / "rejects")
    assert notes["video_damaged"] >= 1
    rejects = count_rejects(run.folder / "rejects")
    assert set(rejects) == {"undecodable"}
    page = (run.folder / "summary.html").read_text()
    assert "video damaged" in page


def invoke(*command: object) -> str:
    done = run_verb(*command)
    assert done.exit_code == 0, done.output
    return done.output


def lines_of(file: Path) -> dict[int, dict]:
    """Lines by the kind of their sample."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {int(line["key"][-1]): line for line in lines}


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory) -> Path:
    """Output of `compare --ask`, which leaves answers.jsonl in both runs' folders."""
    output = tmp_path_factory.mktemp("compared")
    invoke("compare", *(run.folder for run in runs.values()), "--ask", "--output", output)
    return output


@pytest.mark.usefixtures("compared")
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_videos_pictures_and_text_are_asked_about(runs, tokenizer):
    folder = runs[tokenizer].folder
    lines = lines_of(folder / "answers.jsonl")
    assert sorted(lines) == [0, 1, 2, 4, 5]
    tokens = {kind: line["num_visual_tokens"] for kind, line in lines.items()}
    assert [kind for kind, count in tokens.items() if not count] == [4]
    assert tokens[0] == 2 * tokens[2] + tokens[5]
    assert [kind for kind, line in lines.items() if "damage" in line] == [1]
    assert {line["truth"] for line in lines.values()} == {"Noise."}
    (rejected,) = lines_of(folder / "answers.rejected.jsonl").items()
    assert (rejected[0], rejected[1]["reason"]) == (3, "undecodable")


def test_videos_are_compared(compared):
    (found,) = json.loads((compared / "compare.json").read_text())["sets"]
    assert found["num_questions"] == 4, "those with a picture or a video"


def test_a_mixed_set_from_its_json_to_steps(train, tmp_path):
    """Converted, prepared, looked at and trained; what preparation keeps, training uses whole."""
    source = write_mixed_set(tmp_path / "raw", 10 * NUM_KINDS)
    shards = tmp_path / "W"
    invoke("data", "convert", source, "--output-dir", shards, "--text-only", "keep", "--workers", 1)
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["kept"] == 10 * NUM_KEPT
    assert manifest["kept"] + sum(manifest["rejected"].values()) == manifest["entries"]
    invoke("data", "prepare", shards, "--split", "8,1,1", "--num-workers", 1)
    invoke("data", "verify", shards, "--workers", 1)
    said = invoke("data", "stats", shards, "--tokenizer", "pixel", "--workers", 1)
    assert "60 samples, 30 images, 50 videos" in said
    invoke("data", "preview", shards, "--count", 60)
    assert "video clips/a.mp4" in (shards / "preview.html").read_text()
    run = train("mixed", *SETTINGS, "tokenizer=pixel", f"data.path={shards}")
    assert len(run.values("loss")) == 3
    assert all(3 < loss < 12 for loss in run.values("loss"))
    assert 3 < run.validation()[3] < 12
    assert count_rejects(run.folder / "rejects") == {}
    assert count_notes(run.folder / "rejects") == {}
    asked = list(read_split(str(shards), "val"))
    assert {held.record.turns[-1].text for held in asked} == {ANSWER}
    counts = {(len(held.images), len(held.videos)) for held in asked}
    assert counts <= {(1, 0), (0, 0), (0, 1), (1, 2), (1, 1)}
    assert (1, 2) in counts


@pytest.mark.usefixtures("compared")
def test_words_of_videos_are_read_as_in_validation(runs, tmp_path):
    """The loader of a validation and the reader of a split see the same samples."""
    run = runs["pixel"]
    output = tmp_path / "words.jsonl"
    invoke("words", run.folder, "--split", "val", "--limit", 5, "--output", output)
    lines = lines_of(output)
    assert sorted(lines) == [0, 1, 2, 4], "two validation batches, each a micro batch of two"
    asked = lines_of(run.folder / "answers.jsonl")
    for kind, line in lines.items():
        assert line["num_visual_tokens"] == asked[kind]["num_visual_tokens"]
    (seen,) = [e for e in read_json_lines(run.folder / VALIDATION_NAME) if e["step"] == 3]
    assert sum(line["num_words"] for line in lines.values()) == seen["num_words"]
    share = sum(line["num_right"] for line in lines.values()) / seen["num_words"]
    assert share == pytest.approx(seen["word_accuracy"])


@pytest.mark.usefixtures("compared")
def test_two_workers_give_the_same_file_and_blank_media_the_same_tokens(runs, tmp_path):
    folder = runs["pixel"].folder
    output, blank = tmp_path / "a.jsonl", tmp_path / "blank.jsonl"
    command = ["answers", str(folder), "--output", str(output), "--batch-size", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "dct_vl", *command, "--workers", "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert "exact, step 3, val" in done.stdout
    for end in (".jsonl", ".rejected.jsonl"):
        made, alone = output.with_suffix(end), folder / f"answers{end}"
        assert made.read_bytes() == alone.read_bytes()
    invoke("answers", folder, "--output", blank, "--blank")
    seen, guessed = lines_of(output), lines_of(blank)
    assert [line["num_visual_tokens"] for line in seen.values()] == [
        line["num_visual_tokens"] for line in guessed.values()
    ]
    assert seen[4] == guessed[4]
    assert any(seen[kind]["answer"] != guessed[kind]["answer"] for kind in (0, 1, 2, 5))
