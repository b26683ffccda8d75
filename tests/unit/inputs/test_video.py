"""Frames of real files: which ones, how they stand, and what is left of damaged ones."""

from __future__ import annotations

import io
import tracemalloc
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_videos import FASTSTART, STEP, grey_frames, noise_frames, sound, turned, video

from data_prep.video_file import VideoError, read_header, read_timeline
from dct_vl.inputs.clips import VideoRules, choose_frames
from dct_vl.inputs.video import _sound_packets, read_frames
from dct_vl.runs.config.schema import DataConfig, RunConfig
from dct_vl.runs.derived import RunSettings

SIZE = (28, 56)


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are, by their grey."""
    return (frames.mean((1, 2, 3)) / STEP).round().astype(int).tolist()


def linspace(last: int, count: int) -> list[int]:
    return np.linspace(0, last, count).round().astype(int).tolist()


@pytest.mark.parametrize(
    ("available", "duration", "taken"),
    [
        (300, 10.0, 20),  # 2 frames a second
        (299, 9.97, 20),  # rounded to a multiple of two
        (30, 1.0, 4),  # at least min_frames
        (5, 0.2, 4),  # as many pairs as there are
        (3, 0.1, 2),
        (1, 0.04, 2),  # the one frame twice
        (90_000, 3600.0, 768),  # at most max_frames
        (4, 60.0, 4),  # slower than 2 frames a second
    ],
)
def test_the_number_of_frames_is_qwens(available, duration, taken):
    assert VideoRules().num_frames(available, duration) == taken


@pytest.mark.parametrize(
    ("num_frames", "most"),
    [(4, 768 * 784), (64, 768 * 784), (128, 24576 * 784 // 64), (768, int(128 * 784 * 1.05))],
)
def test_the_size_of_frames_is_qwens(num_frames, most):
    """24,576 tokens a video, 768 a pair of frames at most, 1.05 × 128 at least."""
    assert VideoRules().frame_bounds(num_frames) == (128 * 784, most)


@given(
    rules=st.builds(
        VideoRules,
        fps=st.floats(0.1, 60),
        min_frames=st.integers(2, 40),
        max_frames=st.integers(40, 900),
    ),
    available=st.integers(1, 5000),
    duration=st.floats(0, 4000),
)
def test_any_video_gives_an_even_number_within_the_bounds(rules, available, duration):
    taken = rules.num_frames(available, duration)
    assert taken % 2 == 0
    assert 2 <= taken <= max(2, min(available, rules.max_frames))
    least, most = rules.frame_bounds(taken)
    assert least < most <= max(rules.max_pixels, 1.05 * rules.min_pixels)


@pytest.mark.parametrize(
    "keys", [{"fps": 0}, {"min_frames": 8, "max_frames": 6}, {"min_pixels": 0}]
)
def test_impossible_rules_name_their_keys(keys):
    with pytest.raises(ValueError, match=f"video_{next(iter(keys))} is"):
        VideoRules(**keys)


def test_a_run_gives_a_video_nine_tenths_of_its_sequence():
    def rules_of(**keys):
        return RunSettings(RunConfig(data=DataConfig(path="W", **keys))).video_rules

    rules = rules_of(seq_length=1000, video_fps=1.0)
    assert (rules.fps, rules.total_pixels) == (1.0, 900 * 784)
    assert rules_of(video_total_pixels=7).total_pixels == 7


@settings(max_examples=200)
@given(last=st.integers(0, 3000), count=st.integers(1, 800), tick=st.sampled_from([1, 512, 33.37]))
def test_a_constant_rate_gives_qwens_places(last, count, tick):
    """33.37 is a rate that Matroska rounds to milliseconds."""
    times = [round(7 + i * tick) for i in range(last + 1)]
    assert choose_frames(times, count) == linspace(last, count)


@given(
    gaps=st.lists(st.integers(1, 2000), min_size=1, max_size=60),
    count=st.integers(2, 40),
)
def test_a_variable_rate_gives_the_frames_nearest_in_time(gaps, count):
    times = np.cumsum([0, *gaps])
    places = choose_frames(times.tolist(), count)
    assert all(a <= b for a, b in pairwise(places))
    assert (places[0], places[-1]) == (0, len(gaps))
    wanted = np.linspace(times[0], times[-1], count)
    best = np.abs(times[None] - wanted[:, None]).min(1)
    found = np.abs(times[places] - wanted)
    # one tick of rounding is a constant rate still, which goes by place
    assert (found <= best + 2).all()


FILES = {
    "mp4 h264": {},
    "mp4 mpeg4": {"codec": "mpeg4", "options": FASTSTART},
    "mp4 in fragments": {"options": {"movflags": "frag_keyframe+empty_moov"}},
    "mkv h264": {"container": "matroska"},
    "webm vp8": {"container": "webm", "codec": "libvpx"},
    "webm vp9 from a pipe": {"container": "webm", "codec": "libvpx-vp9", "pipe": True},
    "mov mpeg4": {"container": "mov", "codec": "mpeg4"},
    "avi mpeg4": {"container": "avi", "codec": "mpeg4"},
    "gif": {"container": "gif", "codec": "gif", "rate": 10},
}


@pytest.mark.parametrize("kind", FILES)
def test_every_container_gives_header_and_frames(kind):
    data = video(grey_frames(21), **FILES[kind])
    header = read_header(data)
    rate = FILES[kind].get("rate", 30)
    assert (header.height, header.width, header.num_frames) == (64, 96, 21)
    assert header.duration == pytest.approx(21 / rate, rel=0.02)
    found = read_frames(data, 8, *SIZE)
    assert found.frames.shape == (8, *SIZE, 3)
    assert found.frames.dtype == np.uint8
    assert found.damage == ""
    # GIF has few greys
    tolerance = 2 if kind == "gif" else 0
    assert np.abs(np.subtract(numbers(found.frames), linspace(20, 8))).max() <= tolerance


def test_groups_of_pictures_are_jumped_without_harm():
    """Short open groups with B-frames: every frame equals that of decoding from the start."""
    options = {"g": "6", "bf": "3", "x264-params": "open-gop=1:keyint=6:scenecut=0"}
    data = video(noise_frames(40), codec_options=options)
    with av.open(io.BytesIO(data)) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for count in (2, 4, 7, 13, 40):
        found = read_frames(data, count, 64, 96).frames
        np.testing.assert_array_equal(found, np.stack([plain[i] for i in linspace(39, count)]))


def test_what_is_not_needed_is_not_decoded():
    """Of eight groups of pictures the first and the last, as far as the frame that is wanted."""
    data = video(
        noise_frames(48), codec="mpeg4", codec_options={"g": "6", "sc_threshold": "1000000000"}
    )
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        times = read_timeline(container, data)
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert len(times.key_times) == 8
        packets = _sound_packets(container, stream, [times.times[42]], times)
        assert next(packets).pts == times.times[42]


def test_a_variable_rate_is_sampled_in_time():
    """Ten frames in the first tenth of the time, two in the rest."""
    times = [*range(10), 60, 100]
    data = video(grey_frames(12), times=times, rate=30)
    assert read_header(data).num_frames == 12
    assert numbers(read_frames(data, 6, *SIZE).frames) == [0, 9, 10, 10, 10, 11]
    assert linspace(11, 6) == [0, 2, 4, 7, 9, 11]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), "top left"),
        ((0, 1, -1, 0), "top right"),  # a telephone held upright: a quarter clockwise
        ((-1, 0, 0, -1), "bottom right"),
        ((0, -1, 1, 0), "bottom left"),
        ((-1, 0, 0, 1), "top right"),  # mirrored
        ((0, 1, 1, 0), "top left"),  # mirrored along the diagonal
    ],
)
def test_the_display_matrix_turns_frames_upright(matrix, corner):
    pixels = np.zeros((64, 96, 3), dtype=np.uint8)
    pixels[:32, :48] = 240
    data = turned(video([pixels] * 4), matrix)
    header = read_header(data)
    assert (header.height, header.width) == ((96, 64) if matrix[1] else (64, 96))
    frame = read_frames(data, 4, header.height, header.width).frames[2].mean(-1)
    down, right = ("bottom" in corner), ("right" in corner)
    half = (header.height // 2, header.width // 2)
    bright = frame.reshape(2, half[0], 2, half[1]).mean((1, 3))
    assert bright[int(down), int(right)] > 200
    assert bright.sum() - bright[int(down), int(right)] < 60


@pytest.mark.parametrize("count", [1, 3])
def test_few_frames_repeat(count):
    data = video(grey_frames(count))
    assert read_header(data).num_frames == count
    assert numbers(read_frames(data, 4, *SIZE).frames) == linspace(count - 1, 4)


CUT = {
    "mp4": {"options": FASTSTART},
    "avi": {"container": "avi", "codec": "mpeg4"},
}


@pytest.mark.parametrize("kind", CUT)
def test_of_a_file_that_breaks_off_the_frames_before_are_used(kind):
    """Those that the whole file gives, at their places in time."""
    whole = video(noise_frames(30), **CUT[kind])
    cut = whole[: len(whole) // 2]
    assert read_header(cut).num_frames == 30
    found = read_frames(cut, 10, *SIZE)
    assert 3 <= len(found.frames) <= 5
    assert found.damage.startswith(f"{len(found.frames)} of 10 frames are used: the file ends")
    expected = read_frames(whole, 10, *SIZE).frames[: len(found.frames)]
    np.testing.assert_array_equal(found.frames, expected)


def test_a_cut_webm_is_all_that_its_packets_are_and_says_so():
    """It has no index: how much is missing is not known, that something is, is."""
    whole = video(noise_frames(30), container="webm", codec="libvpx")
    cut = whole[: len(whole) // 2]
    assert read_header(cut).num_frames < 20
    found = read_frames(cut, 4, *SIZE)
    assert found.damage == "4 of 4 frames are used: the file ends before the video does"


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_bytes_that_are_no_pictures_end_the_video(codec):
    data = bytearray(video(noise_frames(30), codec=codec))
    data[len(data) // 2 : len(data) // 2 + 9000] = b"\x55" * 9000
    found = read_frames(bytes(data), 10, *SIZE)
    assert 2 <= len(found.frames) <= 6
    assert "frames are used: decoding stops" in found.damage


def test_an_absurd_count_of_frames_costs_nothing():
    """The numbers of frames in an AVI's headers, in a file that breaks off."""
    data = bytearray(video(noise_frames(30), container="avi", codec="mpeg4"))
    for start in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        data[start : start + 4] = b"\xff\xff\xff\x7f"
    cut = bytes(data[: len(data) // 2])
    assert read_header(cut).num_frames > 2**30
    tracemalloc.start()
    found = read_frames(cut, 768, *SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.frames) == 1
    assert peak < 2e8


NO_VIDEO = {
    "no video stream": sound(),
    "no decoder is known": b"none".join(video(grey_frames(3)).rsplit(b"avc1", 1)),
    "cannot be read": b"no video at all" * 20,
    "Invalid data": video(noise_frames(10))[:3000],
    r"cannot be read: .*<none>": b"",
}


@pytest.mark.parametrize("detail", NO_VIDEO)
def test_files_without_a_frame_are_one_kind_of_error(detail):
    for read in (read_header, lambda data: read_frames(data, 2, *SIZE)):
        with pytest.raises(VideoError, match=detail):
            read(NO_VIDEO[detail])


def test_memory_holds_the_resized_frames_only():
    data = video(grey_frames(24, 480, 640), codec="mpeg4")
    tracemalloc.start()
    read_frames(data, 24, *SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 480 * 640 * 3, "24 frames of full size would be held otherwise"
