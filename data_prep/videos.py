"""Check a video and name its part; its bytes are stored as they are."""

from dataclasses import dataclass

from data_prep.images import check_size
from data_prep.options import Options
from data_prep.quarantine import Reason, Rejected
from data_prep.video_file import (
    READ_ERRORS,
    VideoError,
    decoded,
    open_container,
    packets_of,
    read_header,
    read_timeline,
    video_stream,
)

#: extension of a part by FFmpeg's first name of its container; `data_prep.schema` knows them all
_EXTENSIONS = {
    "mov": "mp4",
    "matroska": "mkv",
    "avi": "avi",
    "gif": "gif",
    "flv": "flv",
    "mpegts": "ts",
    "mpeg": "mpg",
    "asf": "wmv",
    "ogg": "ogv",
}
#: how files of those containers start, most of them
_STARTS = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (0, b"\x1a\x45\xdf\xa3"), (0, b"RIFF"))


@dataclass(frozen=True, kw_only=True)
class StoredVideo:
    """A video as it goes into a shard: the source's own bytes."""

    data: bytes
    extension: str  #: of its part, by its container: "mp4"
    height: int  #: pixels, upright
    width: int


def store_video(data: bytes, options: Options) -> StoredVideo:
    """Probe a video with the code that training reads it with; raises Rejected.

    `options.verify` says how much is looked at: the header and the first frame ("none"), every
    packet as well ("structure"), every key frame decoded as well ("decode"). What training would
    use in part, up to the damage, is rejected here.
    """
    if not data:
        raise Rejected(Reason.EMPTY_FILE, "the file has no bytes")
    extension = _extension(data)
    try:
        header = read_header(data)
        if options.verify != "none":
            _check_packets(data)
        if options.verify == "decode":
            _check_key_frames(data)
    except READ_ERRORS as error:
        raise Rejected(Reason.CORRUPT_VIDEO, str(error)) from error
    check_size(header.height, header.width, options)
    return StoredVideo(data=data, extension=extension, height=header.height, width=header.width)


def _extension(data: bytes) -> str:
    try:
        with open_container(data) as container:
            name = container.format.name.partition(",")[0]
            extension = _EXTENSIONS.get(name)
            if extension is None:
                known = ", ".join(_EXTENSIONS.values())
                raise Rejected(
                    Reason.NOT_A_VIDEO, f"FFmpeg takes it for {name}; expected one of {known}"
                )
            if not container.streams.video:
                raise Rejected(Reason.NOT_A_VIDEO, "the file has no video stream")
            video_stream(container)
    except VideoError as error:
        raise Rejected(Reason.UNSUPPORTED_VIDEO, str(error)) from error
    except READ_ERRORS as error:
        if any(data.startswith(start, place) for place, start in _STARTS):
            detail = f"starts as a video, but cannot be opened ({error}): its index may be cut off"
            raise Rejected(Reason.CORRUPT_VIDEO, detail) from error
        raise Rejected(Reason.NOT_A_VIDEO, f"starts with {data[:16]!r}") from error
    return "webm" if extension == "mkv" and b"webm" in data[:64] else extension


def _check_packets(data: bytes) -> None:
    with open_container(data) as container:
        damage = read_timeline(container, data).damage
    if damage:
        early_end = "ends before" in damage
        raise Rejected(Reason.TRUNCATED_VIDEO if early_end else Reason.CORRUPT_VIDEO, damage)


def _check_key_frames(data: bytes) -> None:
    """A few frames of a hundred are decoded: as much of a video as of a JPEG at 1/8 scale."""
    with open_container(data) as container:
        stream = video_stream(container)
        keys = (packet for packet in packets_of(container, stream) if packet.is_keyframe)
        for number, frame in enumerate(decoded(stream, keys)):
            if frame.is_corrupt:
                raise Rejected(Reason.CORRUPT_VIDEO, f"key frame {number} is damaged")
