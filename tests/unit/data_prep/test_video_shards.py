"""Shards with videos are counted, shown and checked; their making is left to others."""

import io
import json
import tarfile

import numpy as np
import simplejpeg

from data_prep.executor import InProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.run import Job, run
from data_prep.shard_pages import pick_samples
from data_prep.shards import iter_samples
from data_prep.stats import tally_shard
from data_prep.verify import _check_sample

TURNS = [{"from": "human", "value": "<video> and <image>?"}, {"from": "gpt", "value": "a"}]
RECORD = {"conversations": TURNS, "image": "1.jpg", "width": 6, "height": 4}


def write_shard(path, record, **media):
    with tarfile.open(path, "w") as tar:
        for part, data in {"json": json.dumps(record).encode(), **media}.items():
            info = tarfile.TarInfo(f"key.{part}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def jpeg() -> bytes:
    return simplejpeg.encode_jpeg(np.zeros((4, 6, 3), np.uint8), colorspace="RGB")


def problems(path):
    with path.open("rb") as shard:
        (sample,) = iter_samples(shard)
        return _check_sample(sample, shard)


def test_videos_do_not_disturb_what_is_said_of_images(tmp_path):
    record = RECORD | {"video": "1.mp4"}
    path = write_shard(tmp_path / "a.tar", record, jpg=jpeg(), mp4=b"video")
    tally = tally_shard(path)
    assert (tally.samples.total(), tally.sizes) == (1, {(4, 6): 1})
    assert problems(path) == []
    (shown,) = pick_samples(tmp_path, 1, seed=0)
    assert shown.images == (jpeg(),)


def test_a_video_without_its_path_is_a_problem(tmp_path):
    path = write_shard(tmp_path / "a.tar", RECORD, jpg=jpeg(), mp4=b"video")
    assert problems(path) == ["1 video parts, 0 paths"]


def test_an_entry_with_a_video_is_rejected_not_stripped_of_it(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "a"}]
    entries = [
        {"id": "a", "video": "a.mp4", "conversations": turns},
        {"id": "b", "conversations": turns},
    ]
    (source / "set.json").write_text(json.dumps(entries))
    options = Options(text_only="keep")
    run(
        Job(data_dir=source, output_dir=target, json=None, options=options),
        InProcessExecutor(),
        Reporter(),
    )
    manifest = json.loads((target / "manifest.json").read_text())
    assert (manifest["kept"], manifest["rejected"]) == (1, {"video": 1})
