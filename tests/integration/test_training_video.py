"""Shards with videos and pictures, from tar files to training steps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Trainer
from PIL import Image

from dct_vl.inputs.rejects import count_notes, count_rejects

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from sample_videos import FASTSTART, noise_frames, sound, video

pytestmark = pytest.mark.slow

#: ten shards, eight of them for training
NUM_SHARDS, PER_SHARD = 10, 4
SETTINGS = (
    "trainer.max_steps=3",
    "trainer.val_every=3",
    "trainer.save_every=-1",
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
    """Of every four samples: two videos and a picture; a cut MP4; a WebM; sound alone."""
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
    ]
    for shard in range(NUM_SHARDS):
        with tarfile.open(root / f"shard-{shard:06d}.tar", "w") as tar:
            # every shard starts with another kind: loaders take a sample of each in turn
            for place in range(PER_SHARD):
                kind = (shard + place) % PER_SHARD
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


@pytest.mark.parametrize("tokenizer", ["dct28_420_t8", "pixel"])
def test_videos_train_and_what_is_damaged_is_counted(video_shards, tiny_model, tmp_path, tokenizer):
    train = Trainer(video_shards, tiny_model, tmp_path)
    run = train("videos", *SETTINGS, f"tokenizer={tokenizer}")
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
