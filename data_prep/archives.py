"""Read files out of archives by offset: tars, compressed or not, and zips.

What a file is, its first bytes say, not its name. A plain tar and a zip are read where they lie, a
tar.gz by entry points that are kept beside the index. Out of bzip2, xz and zstd nothing can be
read without all that comes before it, so such a tar is unpacked once, beside the index as well.
"""

import bz2
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from backports.zstd import ZstdError, ZstdFile
from indexed_gzip import IndexedGzipFile

from data_prep.durable import PARTIAL_SUFFIX, atomic_write

_KINDS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"LZIP": "lzip",
    b"\x1f\x9d": "compress (.Z)",
}
#: read in one pass only
_UNPACKED = ("bzip2", "xz", "zstd")
#: ends of names of archives that are not read, and what they are called
UNREAD_SUFFIXES = {
    ".7z": "7-Zip",
    ".rar": "RAR",
    ".tar.lz4": "LZ4",
    ".tar.lz": "lzip",
    ".tar.Z": "compress (.Z)",
}
_CHUNK = 1024 * 1024
#: Uncompressed bytes between two points from which a gzip stream can be entered. Each point costs
#: 32 KiB in the index; a read decompresses half a spacing more than it needs.
_GZIP_SPACING = 4 * 1024 * 1024
_LOCAL_HEADER = struct.Struct("<4s2xHH4xL8xHH")


class ArchiveError(ValueError):
    """A file that is not read as an archive; the message says why."""


def kind_of(path: Path) -> str:
    """``tar``, ``zip``, or the compression around a tar; "tar" also where nothing is recognised.

    Raises ArchiveError for an archive of a kind that is known but not read.
    """
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.TarError:
        pass
    else:
        return "tar"  # whose first file may be called BZh.jpg
    kind = next((name for magic, name in _KINDS.items() if start.startswith(magic)), "tar")
    if start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5:
        kind = "zstd"  # as pzstd begins
    if kind not in ("tar", "zip", "gzip", *_UNPACKED):
        raise ArchiveError(f"it is a {kind} archive, which is not read")
    return kind


def unread_archives(folder: Path) -> list[str]:
    """A line for each archive of a kind that is not read, unless it is unpacked beside itself."""
    return [
        f"{path.name} is a {kind} archive, which is not read: unpack it"
        for path in sorted(folder.iterdir())
        for suffix, kind in UNREAD_SUFFIXES.items()
        if path.name.endswith(suffix) and not (folder / path.name.removesuffix(suffix)).is_dir()
    ]


def reading_note(path: Path) -> str:
    """What a user should know about the time and room that an archive takes, or ""."""
    kind = kind_of(path)
    if kind == "gzip":
        return "compressed, so it is read sequentially, slower than a plain tar"
    if kind in _UNPACKED:
        return f"{kind}, so it is unpacked into the output folder until the shards are made"
    return ""


class Archive(Protocol):
    """An open archive."""

    def read(self, offset: int, size: int) -> bytes:
        """A file of ``size`` bytes, from where the index has it; fewer bytes where the archive
        ends early. Raises OSError.
        """

    def close(self) -> None:
        """Close the file."""


def open_archive(path: Path, index_folder: Path) -> Archive:
    """Open an archive that was indexed; ``index_folder`` is where its entry points lie."""
    kind = kind_of(path)
    if kind == "gzip":
        return _Gzip(path, gzip_index(index_folder, path.name))
    if kind == "zip":
        return _Zip(path)
    return _Plain(unpacked_path(index_folder, path.name) if kind in _UNPACKED else path)


def gzip_index(folder: Path, name: str) -> Path:
    """Where the entry points of a tar.gz are kept."""
    return folder / f"{name}.gzindex"


def unpacked_path(folder: Path, name: str) -> Path:
    """Where a tar is unpacked; Energon takes what ends in .tar below its folder for a shard."""
    return folder / f"{name}.unpacked"


def needs_unpacking(path: Path, index_folder: Path) -> bool:
    """Whether an archive must be unpacked before it can be read."""
    return kind_of(path) in _UNPACKED and not unpacked_path(index_folder, path.name).exists()


def remove_unpacked(index_folder: Path) -> None:
    """Free the room that unpacked tars take, and what a killed run left of one."""
    for pattern in ("*.unpacked", f"*{PARTIAL_SUFFIX}"):
        for path in index_folder.glob(pattern):
            path.unlink()


def open_tar(path: Path, index_folder: Path) -> tuple[BinaryIO, str]:
    """The tar in an archive that is no zip, to be walked through; what cut it short, or ""."""
    kind = kind_of(path)
    if kind == "gzip":
        return cast(BinaryIO, IndexedGzipFile(str(path), spacing=_GZIP_SPACING)), ""
    if kind not in _UNPACKED:
        return path.open("rb"), ""
    target = unpacked_path(index_folder, path.name)
    broken = ""
    with atomic_write(target) as out:
        try:
            for chunk in _decompressed(path, kind):
                out.write(chunk)
        except ArchiveError as error:
            broken = str(error)
    return target.open("rb"), broken


def _decompressed(path: Path, kind: str) -> Iterator[bytes]:
    """All of a compressed file; ArchiveError where the compression is broken."""
    opener = {"bzip2": bz2.BZ2File, "xz": lzma.LZMAFile, "zstd": ZstdFile}[kind]
    with path.open("rb") as raw, opener(raw) as file:
        while True:
            try:
                # read1 gives what there is before it runs into the break
                chunk = file.read1(_CHUNK)
            except (OSError, EOFError, lzma.LZMAError, ZstdError) as error:
                raise ArchiveError(f"its {kind} data break off ({error})") from error
            if not chunk:
                return
            yield chunk


def zip_members(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Files of a zip: name, offset of the local header, size, and why it is not read, or "".

    Raises ArchiveError where the directory at the end of the file is not sound.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ArchiveError(f"the directory at its end is not sound: {error}") from error
    for info in infos:
        if not info.is_dir():
            yield _zip_name(info), info.header_offset, info.file_size, _why_unread(info)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """macOS writes UTF-8 without the flag that says so."""
    if not info.flag_bits & 0x800:
        try:
            return info.orig_filename.encode("cp437").decode("utf-8")
        except ValueError:
            pass
    return info.filename


def _why_unread(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "encrypted"
    if info.external_attr >> 16 & 0o170000 == 0o120000:
        return "a link"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return (
            f"compressed by zip's method {info.compress_type}: pack it anew by deflate or unpack it"
        )
    return ""


class _Plain:
    """A tar read where it lies."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)

    def close(self) -> None:
        self._file.close()


class _Gzip:
    """A tar.gz, entered at the point before what is wanted."""

    def __init__(self, path: Path, index: Path) -> None:
        known = str(index) if index.exists() else None
        self._file = IndexedGzipFile(str(path), spacing=_GZIP_SPACING, index_file=known)

    def read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()


class _Zip:
    """A zip, whose files are found without its directory: that of a large zip fills a gigabyte."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._name = path.name

    def read(self, offset: int, size: int) -> bytes:
        """The file whose local header is at ``offset``; OSError where its checksum is not right."""
        header = os.pread(self._file.fileno(), _LOCAL_HEADER.size, offset)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise OSError(f"{self._name} has no file at byte {offset:,}")
        _, flags, method, checksum, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = offset + _LOCAL_HEADER.size + name_size + extra_size
        if method == zipfile.ZIP_STORED:
            data = os.pread(self._file.fileno(), size, start)
            following = os.pread(self._file.fileno(), 8, start + size)
        else:
            data, following = self._inflate(start, size)
        if flags & 8:  # the checksum stands behind the data, perhaps after a signature
            following = following[4:] if following.startswith(b"PK\x07\x08") else following
            checksum = int.from_bytes(following[:4], "little")
        if len(data) == size and zlib.crc32(data) != checksum:
            raise OSError(f"{self._name}: the file at byte {offset:,} is damaged (its checksum)")
        return data

    def _inflate(self, start: int, size: int) -> tuple[bytes, bytes]:
        """Decompressed bytes, and the 8 bytes that follow the compressed ones."""
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        data = bytearray()
        try:
            while not stream.eof and (chunk := os.pread(self._file.fileno(), _CHUNK, start)):
                # a bomb is stopped at the size that the directory gives
                data += stream.decompress(chunk, size + 1 - len(data))
                start += len(chunk) - len(stream.unconsumed_tail) - len(stream.unused_data)
                if len(data) > size:
                    raise OSError(
                        f"{self._name}: a file is damaged, or larger than its directory says"
                    )
        except zlib.error as error:
            raise OSError(f"{self._name}: a file is damaged ({error})") from error
        return bytes(data), os.pread(self._file.fileno(), 8, start)

    def close(self) -> None:
        self._file.close()
