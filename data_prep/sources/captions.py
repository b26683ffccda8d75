"""Images and videos with a text beside them, in a folder or in tars, as captioning conversations.

The question is `ReadOptions.caption_prompt`, the answer the caption: the text of ``KEY.txt``, else
``caption`` or ``text`` of ``KEY.json``. A JSON with a conversation is taken for that instead.
"""

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from data_prep.sources.chats import MEDIA_NAMES, read_entry
from data_prep.sources.entry import Archives, Entry, Media, MediaKind, Refusal, Refused, Source
from data_prep.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, TarSource

#: Members of a tar by which it is recognised.
_NUM_LOOKED_AT = 50
_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES
_CAPTION_KEYS = ("caption", "text")
#: Parts of a sample that are neither media nor said by the model.
_OTHER_PARTS = frozenset(("cls", "id", "index"))


@dataclass(kw_only=True)
class _Sample:
    """The files of one key."""

    key: str
    found: list[tuple[int, Media]] = field(default_factory=list)  #: with the numbers of their parts
    text: bytes | None = None
    json: bytes | None = None
    damage: str = ""  #: of its text
    unknown: list[str] = field(default_factory=list)  #: parts that are not understood

    @property
    def media(self) -> list[Media]:
        """In the order of their numbers, not of names, which have 10 before 2."""
        return [one for _, one in sorted(self.found, key=lambda found: found[0])]


def media_files(folder: Path) -> Iterator[Path]:
    """Images and videos in a folder, by name, then in the folders below it."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _suffix(name) in _MEDIA_SUFFIXES and not name.startswith("."):
                yield Path(root, name)


def holds_samples(tars: tuple[TarSource, ...]) -> bool:
    """Whether the first tar begins with an image or a video, and a text or JSON of its key."""
    if not tars:
        return False
    sides: dict[str, set[str]] = {}
    try:
        with tarfile.open(tars[0].path, "r|*") as file:
            for member in islice(file, _NUM_LOOKED_AT):
                key, part = _split(member.name)
                sides.setdefault(key, set()).add(_suffix(part))
    except (tarfile.ReadError, EOFError, OSError):
        return False
    return any(parts & _MEDIA_SUFFIXES and parts & {"txt", "json"} for parts in sides.values())


def read_folder(source: Source, archives: Archives) -> Iterator[Entry | Refusal]:
    """An entry a file, in the order of `media_files`."""
    for index, path in enumerate(source.files):
        name = path.relative_to(source.data_dir).as_posix()
        sample = _Sample(key=name, found=[(0, _media(name))])
        sample.text = _read(path.with_suffix(".txt"))
        sample.json = _read(path.with_suffix(".json")) if sample.text is None else None
        yield _entry(source, index, sample)


def read_webdataset(source: Source, archives: Archives) -> Iterator[Entry | Refusal]:
    """An entry a key, in order of the tars and of their members."""
    index = 0
    for tar in source.tars:
        for sample in _samples(tar, archives):
            yield _entry(source, index, sample)
            index += 1


def _samples(tar: TarSource, archives: Archives) -> Iterator[_Sample]:
    """Neighbouring members of one key."""
    sample: _Sample | None = None
    for name, read in archives.members(tar.name):
        key, part = _split(name)
        if not key or not part:
            continue
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = _Sample(key=key)
        _add(sample, part, f"{tar.stem}/{name}", read)
    if sample is not None:
        yield sample


def _split(name: str) -> tuple[str, str]:
    """Key and part: the first dot behind the folders is between them, as in WebDataset."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    key, _, part = last.partition(".")
    return (f"{folder}{slash}{key}" if key else ""), part


def _add(sample: _Sample, part: str, path: str, read: Callable[[], bytes]) -> None:
    suffix = _suffix(part)
    if suffix in _MEDIA_SUFFIXES:
        number = part.partition(".")[0]
        place = int(number) if number.isdecimal() else 0
        sample.found.append((place, _media(path)))
    elif suffix in ("txt", "json"):
        try:
            setattr(sample, "text" if suffix == "txt" else "json", read())
        except OSError as error:
            sample.damage = str(error)
    elif suffix not in _OTHER_PARTS:
        sample.unknown.append(part)


def _media(path: str) -> Media:
    kind: MediaKind = "video" if _suffix(path) in VIDEO_SUFFIXES else "image"
    return Media(kind=kind, path=path)


def _entry(source: Source, index: int, sample: _Sample) -> Entry | Refusal:
    try:
        raw = _raw(source, sample)
    except Refused as error:
        raw = {"id": sample.key} | {
            kind: [one.path for one in found] for kind, found in _by_kind(sample).items()
        }
        return Refusal(index=index, line=None, raw=raw, reason=error.reason, detail=error.detail)
    return read_entry(source, index, None, raw)


def _raw(source: Source, sample: _Sample) -> dict[str, Any]:
    """The sample as an object of `chats.read_entry`; raises Refused."""
    if sample.damage:
        raise Refused("unreadable_source", sample.damage)
    if sample.unknown:
        raise Refused(
            "unknown_key",
            f"the part {sample.unknown[0]} is not understood; expected images, videos, txt, json",
        )
    said = _parsed(sample)
    media = _by_kind(sample)
    if said.keys() & {"conversations", "messages"}:
        # the JSON's own names of the media that lie beside it
        own = {key: said[key] for key in said.keys() - MEDIA_NAMES}
        return {"id": sample.key} | own | media
    caption: Any = None
    if sample.text is not None:
        caption = _decoded(sample.text, "txt").strip()
    else:
        caption = next((said[key] for key in _CAPTION_KEYS if said.get(key) is not None), None)
    if caption is None:
        raise Refused("no_answer", f"{sample.key} has no .txt, and no .json with a caption")
    if len(sample.media) != 1:
        raise Refused("malformed_entry", f"{len(sample.media)} images or videos for one caption")
    mark = f"<{sample.media[0].kind}>"
    return {
        "id": sample.key,
        **media,
        "conversations": [
            {"from": "human", "value": f"{mark}\n{source.options.caption_prompt}"},
            {"from": "gpt", "value": caption},
        ],
    }


def _by_kind(sample: _Sample) -> dict[str, list[Media]]:
    """Its media under the keys that an entry has them; no key for a kind of which it has none."""
    found: dict[str, list[Media]] = {}
    for one in sample.media:
        found.setdefault(one.kind, []).append(one)
    return found


def _parsed(sample: _Sample) -> dict[str, Any]:
    if sample.json is None:
        return {}
    try:
        said = orjson.loads(_decoded(sample.json, "json"))
    except orjson.JSONDecodeError as error:
        if sample.text is not None:
            return {}
        raise Refused("malformed_entry", f"{sample.key}.json is no JSON: {error}") from error
    # a bare list of turns is what shards of earlier projects hold
    said = {"conversations": said} if isinstance(said, list) else said
    if not isinstance(said, dict):
        raise Refused("malformed_entry", f"{sample.key}.json is a {type(said).__name__}")
    return said


def _decoded(data: bytes, part: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused("malformed_entry", f"the {part} is no UTF-8: {error}") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()
