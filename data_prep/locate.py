"""Find and read the images and videos of entries, in tars or in extracted folders."""

import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data_prep.archives import unread_archives
from data_prep.quarantine import Reason, Rejected
from data_prep.sources import Location, TarSource
from data_prep.sources.entry import MediaKind
from data_prep.tar_index import Member, TarIndex, TarReader, member_name


class Locator:
    """Finds images and videos of entries.

    A path ``ai2d/images/1.png`` is looked for in ``ai2d.tar`` as it stands, then without the first
    folder, then in all other tars as it stands, then as an extracted file. Where several of the
    other tars hold it, none is chosen. An absolute path below the data folder is what it is from
    there. Links, devices and sparse files in tars are never followed; a path that would leave the
    data folder is refused.
    """

    def __init__(self, data_dir: Path, tars: list[TarSource], index: TarIndex) -> None:
        self._data_dir = data_dir
        self._index = index
        self._by_stem = {tar.stem: tar.name for tar in tars}
        self._stems = {tar.name: tar.stem for tar in tars}
        self._unread_archives = unread_archives(data_dir)

    def find(self, media: str, kind: MediaKind = "image") -> Location:
        """Location of an entry's image or video; raises Rejected where there is none."""
        path = path_below(self._data_dir, media, kind)
        name = member_name(path)
        first, _, rest = name.partition(b"/")
        own_tar = self._by_stem.get(os.fsdecode(first))
        members = self._index.find(name)
        found = [m for m in members if m.tar == own_tar]
        if own_tar is not None and not found and rest:
            found = [m for m in self._index.find(rest) if m.tar == own_tar]
        found = found or members
        if not found:
            lacking = "is in no tar and is no file of the data folder" + self._unread(path)
            return find_file(self._data_dir, media, kind, lacking=lacking)
        member = self._only(media, found)
        return Location(
            source=self._stems[member.tar],
            file=member.tar,
            offset=member.offset,
            size=member.size,
        )

    def members(self, tar: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
        """Names of the files in an archive in the order of their places, and what reads each."""
        reader = TarReader(self._data_dir, self._index.folder)
        try:
            for name, offset, size in self._index.members(tar):
                yield name, partial(_read_whole, reader, tar, offset, size)
        finally:
            reader.close()

    def _only(self, media: str, found: list[Member]) -> Member:
        """The one member that is a file; raises Rejected where there is none, or a choice."""
        members = [member for member in found if not member.unread]
        if not members:
            raise Rejected(
                Reason.NOT_A_REGULAR_FILE, f"{media} in {found[0].tar} is {found[0].unread}"
            )
        if len(members) > 1:
            names = " and in ".join(member.tar for member in members)
            raise Rejected(
                Reason.AMBIGUOUS_IMAGE,
                f"{media} is in {names}; keep one, or name the tar's folder in the path, as in "
                f"{self._stems[members[0].tar]}/{media}",
            )
        return members[0]

    def _unread(self, path: str) -> str:
        """The archive that may hold it, of a kind that is not read."""
        first = path.partition("/")[0]
        lines = [line for line in self._unread_archives if line.startswith(f"{first}.")]
        return f"; {lines[0]}" if lines else ""


def path_below(data_dir: Path, media: str, kind: MediaKind) -> str:
    """The path of an entry's image or video from the data folder, without dots in it; raises
    Rejected where it leads out of there.
    """
    if "\0" in media:
        raise Rejected(Reason.UNSAFE_PATH, f"{kind} {media!r} holds a NUL character")
    if media[:1] not in ("/", ".", "") and "/." not in media and "//" not in media:
        return media
    path = posixpath.normpath(media)
    if path.startswith("/"):
        path = posixpath.normpath(f"/{path.lstrip('/')}")
        # with and without the links on the way to it
        roots = (f"{root}/" for root in (data_dir.absolute(), data_dir.resolve()))
        root = next((root for root in roots if path.startswith(root)), None)
        if root is None:
            raise Rejected(
                Reason.UNSAFE_PATH,
                f"{kind} {media!r} is an absolute path outside {data_dir}; put the file "
                "there, or give its path from there",
            )
        return path.removeprefix(root)
    if path == ".." or path.startswith("../"):
        raise Rejected(
            Reason.UNSAFE_PATH,
            f"{kind} {media!r} leads out of {data_dir}; put the file there, or convert with the "
            "folder above as --data-dir",
        )
    return path


def find_file(data_dir: Path, media: str, kind: MediaKind, *, lacking: str) -> Location:
    """Location of an image or video that lies in the data folder as a file.

    Raises:
        Rejected: the path leads out of there, there is none, of which `lacking` says more, or it
            is no regular file.
    """
    path = path_below(data_dir, media, kind)
    try:
        status = (data_dir / path).stat()
    except (OSError, ValueError) as error:
        reason = Reason.MISSING_IMAGE if kind == "image" else Reason.MISSING_VIDEO
        raise Rejected(reason, f"{media} {lacking}") from error
    if not stat.S_ISREG(status.st_mode):
        raise Rejected(Reason.NOT_A_REGULAR_FILE, f"{media} is a folder or a device")
    source, slash, _ = path.partition("/")
    return Location(source=source if slash else "", file=path, offset=-1, size=status.st_size)


def _read_whole(reader: TarReader, tar: str, offset: int, size: int) -> bytes:
    data = reader.read(tar, offset, size)
    if len(data) != size:
        raise OSError(f"{tar} ends {size - len(data)} bytes before the file does")
    return data


class ImageReader:
    """Bytes of located images."""

    def __init__(self, data_dir: Path, index_folder: Path) -> None:
        self._data_dir = data_dir
        self._tars = TarReader(data_dir, index_folder)

    def read(self, location: Location) -> bytes:
        try:
            if location.offset < 0:
                return (self._data_dir / location.file).read_bytes()
            data = self._tars.read(location.file, location.offset, location.size)
        except OSError as error:
            raise Rejected(Reason.UNREADABLE_SOURCE, str(error)) from error
        if len(data) != location.size:
            raise Rejected(
                Reason.UNREADABLE_SOURCE,
                f"{location.file} ends {location.size - len(data)} bytes before the image does",
            )
        return data

    def close(self) -> None:
        self._tars.close()
