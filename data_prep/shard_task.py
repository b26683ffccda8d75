"""Make one shard from its range of the plan: the unit of work of every executor."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from data_prep.durable import write_durably
from data_prep.images import StoredImage, store_image
from data_prep.media_reader import MediaReader
from data_prep.options import Options
from data_prep.plan import PlannedEntry, PlannedShard, read_planned
from data_prep.quarantine import Rejected, reject_line
from data_prep.sample_key import encode_key
from data_prep.shards import ShardWriter
from data_prep.workspace import Workspace, read_json, unreadable

if TYPE_CHECKING:
    from data_prep.videos import StoredVideo

_REPORT_EVERY_S = 0.25


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker on any machine that sees both folders needs to make a shard."""

    data_dir: Path
    workspace: Workspace
    round_number: int
    shard: PlannedShard
    options: Options


@dataclass(frozen=True, kw_only=True)
class Tick:
    """Progress since the last one."""

    images: int
    videos: int
    source_bytes: int
    rejected: dict[str, int]


@dataclass(kw_only=True)
class ShardRecord:
    """What is known of a finished shard; kept as JSON in its round."""

    number: int
    name: str
    samples: int = 0  #: 0: every entry was rejected, and there is no file
    images: int = 0
    videos: int = 0
    bytes: int = 0  #: of the shard
    source_bytes: int = 0  #: of all media that were located, stored or not
    sha256: str = ""
    sources: Counter[str] = field(default_factory=Counter)  #: samples by source
    conversions: Counter[str] = field(default_factory=Counter)  #: images by conversion
    rejected: Counter[str] = field(default_factory=Counter)  #: entries by reason
    rejects: list[dict[str, Any]] = field(default_factory=list)  #: quarantine lines


def load_record(path: Path) -> ShardRecord:
    """Read a record back; WorkspaceError where it is not as it was written."""
    fields = read_json(path)
    try:
        for name in ("sources", "conversions", "rejected"):
            fields[name] = Counter(fields[name])
        return ShardRecord(**fields)
    except (KeyError, TypeError) as error:
        raise unreadable(path, error) from error


def make_shard(task: ShardTask, report: Callable[[Tick], None] = lambda tick: None) -> ShardRecord:
    """Write the shard and its record, each atomically."""
    workspace = task.workspace
    source = workspace.round(task.round_number)
    path = workspace.shard(task.shard.number)
    record = ShardRecord(number=task.shard.number, name=path.name)
    meter = _Meter(report)
    reader = MediaReader(task.data_dir, workspace.index, source.spool)
    try:
        with ShardWriter(path) as writer:
            for planned in read_planned(source, task.shard):
                _add_entry(planned, reader, task.options, writer, record, meter)
            if record.samples:
                record.bytes, record.sha256 = writer.publish()
                workspace.deliver(path)
            else:
                path.unlink(missing_ok=True)
    finally:
        reader.close()
    meter.flush()
    write_durably(source.record(task.shard.number), orjson.dumps(record))
    workspace.deliver(source.record(task.shard.number))
    return record


def _add_entry(
    planned: PlannedEntry,
    reader: MediaReader,
    options: Options,
    writer: ShardWriter,
    record: ShardRecord,
    meter: "_Meter",
) -> None:
    record.source_bytes += planned.source_bytes
    entry = planned.entry
    images: list[StoredImage] = []
    videos: list[StoredVideo] = []
    for location in (*planned.images, *planned.videos):
        try:
            data = reader.read(location)
            if len(images) < len(planned.images):
                images.append(store_image(data, options))
            else:
                videos.append(_store_video(data, options))
        except Rejected as rejection:
            record.rejected[rejection.reason.value] += 1
            line = reject_line(planned.index, entry, rejection, location)
            record.rejects.append(orjson.loads(line))
            meter.add(planned, rejection.reason.value)
            return
    original_id = "" if entry.get("id") is None else entry["id"]
    key = encode_key(str(original_id), planned.index)
    source = next((place.source for place in (*planned.images, *planned.videos)), "text")
    writer.add(f"{key}.json", _sample_json(original_id, entry, planned, source, images, videos))
    for number, image in enumerate(images):
        writer.add(f"{key}.{_part(number, len(images), 'jpg')}", image.data)
        record.conversions.update(image.conversions)
    for number, video in enumerate(videos):
        writer.add(f"{key}.{_part(number, len(videos), video.extension)}", video.data)
    record.samples += 1
    record.images += len(images)
    record.videos += len(videos)
    record.sources[source] += 1
    meter.add(planned)


def _store_video(data: bytes, options: Options) -> "StoredVideo":
    # PyAV takes an eighth of a second to import, which sets of images do without
    from data_prep.videos import store_video

    return store_video(data, options)


def _part(number: int, count: int, extension: str) -> str:
    """Name of a part, as `data_prep.schema` has it."""
    return extension if count == 1 else f"{number}.{extension}"


def _sample_json(
    original_id: str | int,
    entry: dict[str, Any],
    planned: PlannedEntry,
    source: str,
    images: list[StoredImage],
    videos: "list[StoredVideo]",
) -> bytes:
    sample = {"conversations": entry["conversations"], "id": original_id, "source": source}
    for kind, paths in (("image", planned.paths), ("video", planned.video_paths)):
        if paths:
            sample[kind] = paths[0] if len(paths) == 1 else paths
    media: list[StoredImage | StoredVideo] = [*images, *videos]
    if len(media) == 1:
        sample |= {"width": media[0].width, "height": media[0].height}
    elif media:
        sample |= {
            "width": [one.width for one in media],
            "height": [one.height for one in media],
        }
    return orjson.dumps(sample)


class _Meter:
    """Collects progress and reports it a few times a second."""

    def __init__(self, report: Callable[[Tick], None]) -> None:
        self._report = report
        self._images = self._videos = self._bytes = 0
        self._rejected: Counter[str] = Counter()
        self._due = monotonic() + _REPORT_EVERY_S

    def add(self, planned: PlannedEntry, rejected: str | None = None) -> None:
        self._images += len(planned.images)
        self._videos += len(planned.videos)
        self._bytes += planned.source_bytes
        if rejected is not None:
            self._rejected[rejected] += 1
        if monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        tick = Tick(
            images=self._images,
            videos=self._videos,
            source_bytes=self._bytes,
            rejected=dict(self._rejected),
        )
        self._images = self._videos = self._bytes = 0
        self._rejected.clear()
        self._due = monotonic() + _REPORT_EVERY_S
        self._report(tick)
