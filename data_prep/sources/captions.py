"""Images with a text beside them, in a folder or in tars, as captioning conversations.

The question is `ReadOptions.caption_prompt`, the answer the caption: the text of ``KEY.txt``, else
``caption`` or ``text`` of ``KEY.json``. A JSON with a conversation is taken for that instead.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from data_prep.sources.chats import read_entry
from data_prep.sources.entry import Entry, Media, MediaKind, Refusal, Refused, Source
from data_prep.sources.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, SourceError, TarSource

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
    unknown: list[str] = field(default_factory=list)  #: parts that are not understood

    @property
    def media(self) -> list[Media]:
        """In the order of their numbers, not of names, which have 10 before 2."""
        return [one for _, one in sorted(self.found, key=lambda found: found[0])]


def image_files(folder: Path) -> Iterator[Path]:
    """Images in a folder, by name, then in the folders below it."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if _suffix(name) in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(root, name)


def holds_samples(tars: list[TarSource]) -> bool:
    """Whether the first tar has an image with a text or JSON of its key."""
    for tar in tars[:1]:
        for number, sample in enumerate(_samples(tar)):
            if sample.found and (sample.text is not None or sample.json is not None):
                return True
            if number >= 10:
                break
    return False


def read_folder(source: Source) -> Iterator[Entry | Refusal]:
    """An entry an image, in the order of `image_files`."""
    for index, path in enumerate(source.files):
        name = path.relative_to(source.data_dir).as_posix()
        sample = _Sample(key=name, found=[(0, Media(kind="image", path=name))])
        sample.text = _read(path.with_suffix(".txt"))
        sample.json = _read(path.with_suffix(".json")) if sample.text is None else None
        yield _entry(source, index, sample)


def read_webdataset(source: Source) -> Iterator[Entry | Refusal]:
    """An entry a key, in order of the tars and of their members."""
    index = 0
    for tar in source.tars:
        for sample in _samples(tar):
            yield _entry(source, index, sample)
            index += 1


def _samples(tar: TarSource) -> Iterator[_Sample]:
    """Neighbouring members of one key; a dot parts it from the part's name, as in WebDataset."""
    sample: _Sample | None = None
    try:
        with tarfile.open(tar.path, "r|*") as file:
            for member in file:
                file.members.clear()  # type: ignore[attr-defined]
                folder, slash, name = member.name.removeprefix("./").rpartition("/")
                key, _, part = name.partition(".")
                if not member.isfile() or not key or not part:
                    continue
                key = f"{folder}{slash}{key}"
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key=key)
                _add(sample, part, file, member, f"{tar.stem}/{member.name.removeprefix('./')}")
    except (tarfile.ReadError, EOFError, OSError) as error:
        if sample is None:
            raise SourceError(f"{tar.path} cannot be read as a tar ({error})") from error
    if sample is not None:
        yield sample


def _add(
    sample: _Sample, part: str, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str
) -> None:
    suffix = _suffix(part)
    kinds: dict[MediaKind, frozenset[str]] = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES}
    for kind, suffixes in kinds.items():
        if suffix in suffixes:
            number = part.partition(".")[0]
            place = int(number) if number.isdecimal() else 0
            sample.found.append((place, Media(kind=kind, path=path)))
            return
    if suffix in ("txt", "json"):
        file = tar.extractfile(member)
        assert file is not None, "it is a regular file"
        setattr(sample, "text" if suffix == "txt" else "json", file.read())
    elif suffix not in _OTHER_PARTS:
        sample.unknown.append(part)


def _entry(source: Source, index: int, sample: _Sample) -> Entry | Refusal:
    raw: dict[str, Any] = {"id": sample.key, "image": [one.path for one in sample.media]}
    try:
        raw = _raw(source, sample)
    except Refused as error:
        return Refusal(index=index, line=None, raw=raw, reason=error.reason, detail=error.detail)
    return read_entry(source, index, None, raw)


def _raw(source: Source, sample: _Sample) -> dict[str, Any]:
    """The sample as an object of `chats.read_entry`; raises Refused."""
    if sample.unknown:
        raise Refused(
            "unknown_key",
            f"the part {sample.unknown[0]} is not understood; expected images, videos, txt, json",
        )
    said = _parsed(sample)
    media: dict[str, Any] = {
        kind: found
        for kind in ("image", "video")
        if (found := [one for one in sample.media if one.kind == kind])
    }
    if said.keys() & {"conversations", "messages"}:
        # the JSON's own names of the media that lie beside it
        own = {key: value for key, value in said.items() if key not in ("image", "video")}
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
