"""Small video files made on the fly; frame i is an even grey of level 12 i, unless given."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

STEP = 12
#: the index in front, as files for the web have it
FASTSTART = {"movflags": "faststart"}


class Pipe:
    """A target that cannot go back, as a pipe: containers cannot write their counts."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        """Append."""
        self.data += data
        return len(data)


def grey_frames(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """uint8 (H, W, 3) frames whose level tells their number."""
    return [np.full((height, width, 3), STEP * i % 256, dtype=np.uint8) for i in range(count)]


def noise_frames(count: int, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames of random pixels, whose files are long enough to be cut."""
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def video(
    frames: Sequence[np.ndarray],
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: int = 30,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pipe: bool = False,
) -> bytes:
    """Encode frames.

    times: of the frames, in units of 1 / rate; 0, 1, 2 … if not given.
    options: of the container. codec_options: of the encoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        target: Any = Pipe() if pipe else str(path)
        with av.open(target, "w", format=container, options=options or {}) as output:
            stream = output.add_stream(codec, rate=rate, options=codec_options or {})
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = number if times is None else times[number]
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return bytes(target.data) if pipe else path.read_bytes()


def sound() -> bytes:
    """An MP4 with sound alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.mp4"
        with av.open(str(path), "w") as output:
            stream = output.add_stream("aac", rate=8000, layout="mono")
            silence = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate = 8000
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path.read_bytes()


def turned(mp4: bytes, matrix: Sequence[int]) -> bytes:
    """The MP4 with (a, b, c, d) as its display matrix, written where ISO/IEC 14496-12 puts it."""
    a, b, c, d = matrix
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    packed = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    # behind version and flags, five numbers, eight reserved bytes, four numbers of two bytes
    start = mp4.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 4 * 2
    return mp4[:start] + packed + mp4[start + len(packed) :]
