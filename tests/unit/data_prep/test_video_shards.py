"""Videos are probed, stored untouched, counted, shown and checked."""

import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import simplejpeg
from mixed_set import NUM_KEPT, NUM_KINDS, media, write_mixed_set
from PIL import Image
from raw_set import output_bytes, read_shards
from rich.console import Console
from sample_videos import grey_frames, noise_frames, video

from data_prep.check import check
from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import OptionError, Options
from data_prep.progress import Reporter
from data_prep.quarantine import Reason, Rejected, missing_by_folder
from data_prep.run import Job, run
from data_prep.schema import image_parts, parse_record, video_parts
from data_prep.shard_pages import pick_samples, preview_page
from data_prep.shards import iter_samples
from data_prep.stats import Tally, as_json, tally_shard
from data_prep.verify import _check_sample, verify
from data_prep.videos import store_video
from dct_vl.inputs.video import read_frames

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


def convert(source, target, workers=1, source_format="llava", **options):
    job = Job(
        data_dir=source.parent,
        output_dir=target,
        json=Path(source.name),
        options=Options(text_only="keep", **options),
        format=source_format,
    )
    engine = InProcessExecutor() if workers == 1 else ProcessExecutor(workers)
    return run(job, engine, Reporter(Console(quiet=True)))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return write_mixed_set(tmp_path_factory.mktemp("mixed") / "raw", 2 * NUM_KINDS)


@pytest.fixture(scope="module")
def shards(mixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    convert(mixed, folder)
    return folder


def test_videos_are_stored_untouched_beside_images_and_text(shards):
    files = media()
    samples = read_shards(shards)
    assert len(samples) == 2 * NUM_KEPT
    for parts in samples.values():
        sample = json.loads(parts["json"])
        record = parse_record(parts["json"])
        assert [parts[p] for p in video_parts(parts)] == [files[path] for path in record.videos]
        images, videos = image_parts(parts), video_parts(parts)
        assert len(record.sizes) == len(images) == len(record.images)
        text = "".join(turn.text for turn in record.turns)
        assert (text.count("<image>"), text.count("<video>")) == (len(images), len(videos))
        sizes = [(56, 84)] * len(images) + [(64, 96)] * len(videos)
        several = len(sizes) != 1
        heights = sample.get("height", []) if several else [sample["height"]]
        widths = sample.get("width", []) if several else [sample["width"]]
        assert list(zip(heights, widths, strict=True)) == sizes
    (both,) = [p for p in samples.values() if json.loads(p["json"])["id"] == "mixed/3"]
    assert sorted(both) == ["0.mp4", "1.webm", "jpg", "json"]


def test_every_entry_is_kept_or_listed_with_its_reason(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    rejected = {"truncated_video": 2, "not_a_video": 2, "missing_video": 2}
    assert manifest["rejected"] == rejected
    assert manifest["kept"] + sum(rejected.values()) == manifest["entries"] == 2 * NUM_KINDS
    assert (manifest["images"], manifest["videos"]) == (6, 10)
    assert manifest["repairs"] == {"video_marks_added": 2}
    lines = [json.loads(line) for line in (shards / "quarantine.jsonl").open()]
    cut = next(line for line in lines if line["reason"] == "truncated_video")
    assert (cut["video"], cut["file"]) == ("clips/cut.mp4", "clips.tar")
    assert missing_by_folder(shards / "quarantine.jsonl") == {"clips": 2}


def test_workers_do_not_show(mixed, shards, tmp_path):
    convert(mixed, tmp_path / "W", workers=2)
    assert output_bytes(tmp_path / "W") == output_bytes(shards)


def test_messages_store_the_same(shards, tmp_path):
    source = write_mixed_set(tmp_path / "raw", 2 * NUM_KINDS, messages=True)
    convert(source, tmp_path / "W", source_format=None)
    expected, found = read_shards(shards), read_shards(tmp_path / "W")
    assert list(found) == list(expected)
    for key, parts in found.items():
        said, other = json.loads(parts.pop("json")), json.loads(expected[key]["json"])
        assert {**other, **parts} == {**other, **{p: expected[key][p] for p in parts}}
        assert parse_record(said).turns == parse_record(other).turns
        assert (said.get("video"), said.get("height")) == (other.get("video"), other.get("height"))


def test_videos_are_counted_shown_and_verified(shards):
    tally = Tally()
    for path in sorted(shards.glob("*.tar")):
        tally.add(tally_shard(path))
    figures = as_json(tally, [], min_pixels=784, max_pixels=43_904)
    assert (figures["samples"], figures["images"], figures["videos"]) == (12, 6, 10)
    assert figures["videos_per_sample"] == {0: 4, 1: 6, 2: 2}
    samples = pick_samples(shards, 24, seed=0)
    assert sum(len(shown.first_frames) for shown in samples) == 10
    page = preview_page("mixed", samples)
    assert page.count("<img") == 16
    assert "video clips/a.mp4" in page
    frame = np.asarray(
        Image.open(io.BytesIO(next(s for s in samples if s.first_frames).first_frames[0]))
    )
    assert frame.shape == (64, 96, 3)
    assert all(not findings.problems for findings in verify(shards, workers=1))


def test_a_dry_run_probes_videos(mixed, tmp_path):
    options = Options(text_only="keep")
    job = Job(data_dir=mixed.parent, output_dir=tmp_path, json=Path(mixed.name), options=options)
    lines = list(check(job, tokenizers=[], model=None))
    assert f"  video clips/a.mp4: 96x64, {len(media()['clips/a.mp4']):,} bytes, as it is" in lines
    assert [line for line in lines if line.startswith("rejected, missing_video: 2")]


def test_larger_videos_are_left_out(mixed, tmp_path):
    size = len(media()["clips/a.mp4"])
    summary = convert(mixed, tmp_path / "W", max_video_bytes=size - 1)
    assert summary.rejected["too_many_bytes"] >= 2
    assert summary.kept + sum(summary.rejected.values()) == summary.entries
    with pytest.raises(OptionError, match="--max-video-bytes is 8589934592; expected less than"):
        Options(max_video_bytes=8 << 30)


def reason_for(data, verify="decode"):
    with pytest.raises(Rejected) as caught:
        store_video(data, Options(verify=verify))
    return caught.value.reason


def test_reasons():
    files = media()
    late_index = files["clips/b.mp4"]
    assert reason_for(b"") is Reason.EMPTY_FILE
    assert reason_for(b"<html>404</html>") is Reason.NOT_A_VIDEO
    assert reason_for(files["films/0.jpg"]) is Reason.NOT_A_VIDEO
    assert reason_for(files["films/sound.mp4"]) is Reason.NOT_A_VIDEO
    assert reason_for(files["clips/cut.mp4"]) is Reason.TRUNCATED_VIDEO
    assert reason_for(late_index[: len(late_index) // 2]) is Reason.CORRUPT_VIDEO
    assert reason_for(files["films/c.webm"][:-2000]) is Reason.TRUNCATED_VIDEO
    assert reason_for(video(grey_frames(4, 20, 96))) is Reason.TOO_SMALL


def test_a_spoilt_key_frame_is_found_by_decoding():
    data = bytearray(video(noise_frames(24), codec="mpeg4", codec_options={"g": "6"}))
    with av.open(io.BytesIO(data)) as container:
        keys = [p for p in container.demux(video=0) if p.is_keyframe and p.size]
    place = keys[2].pos
    data[place : place + keys[2].size] = bytes(keys[2].size)
    assert store_video(bytes(data), Options(verify="structure")).extension == "mp4"
    assert reason_for(bytes(data)) is Reason.CORRUPT_VIDEO


@pytest.mark.parametrize(
    ("container", "codec", "extension"),
    [
        ("mp4", "libx264", "mp4"),
        ("mov", "libx264", "mp4"),
        ("matroska", "libx264", "mkv"),
        ("webm", "libvpx", "webm"),
        ("avi", "mpeg4", "avi"),
        ("mpegts", "libx264", "ts"),
        ("flv", "libx264", "flv"),
        ("gif", "gif", "gif"),
    ],
)
def test_parts_are_named_by_their_container(container, codec, extension):
    data = video(noise_frames(4), container=container, codec=codec)
    stored = store_video(data, Options())
    assert (stored.extension, stored.height, stored.width) == (extension, 64, 96)
    assert stored.data is data
    assert video_parts({f"0.{extension}": data, "json": b""}) == [f"0.{extension}"]
    assert read_frames(data, 2, 28, 56).damage == ""
