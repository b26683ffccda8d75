"""Walk through a tar to the end of its file: past damage, and past the ends of joined tars.

Python's ``tarfile`` takes a damaged header for the end, and stops at the end mark of the first of
several tars that were joined with ``cat``. Here the next sound header is looked for instead, block
by block, and what was passed over is reported unless it is zeros.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_CHUNK = 1024 * 1024
#: tarfile's own errors; of the others a header of noise may bring out any (numbers, sparse maps)
_BAD_HEADER = (tarfile.TarError, ValueError, IndexError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A place of a tar where something is lost, or may be."""

    offset: int  #: of the first byte that makes no sense, in the uncompressed tar
    detail: str
    between: bool = True  #: members may be missing there; False: all that was seen is sound

    def __str__(self) -> str:
        return f"byte {self.offset:,}: {self.detail}"


OnDamage = Callable[[Damage], None]


def members(file: BinaryIO, on_damage: OnDamage) -> Iterator[tarfile.TarInfo]:
    """Members of an open tar; see `walk`. The file may be read between two of them."""
    for start in (0, tarfile.BLOCKSIZE):
        file.seek(start)
        try:
            tar = tarfile.open(fileobj=file, mode="r:", ignore_zeros=True)  # noqa: SIM115
        except tarfile.ReadError:
            if start:
                raise
            # a long name whose second header is damaged, as the first of all, or no tar
        else:
            break
    with tar:
        yield from walk(tar, on_damage)


def walk(tar: Any, on_damage: OnDamage) -> Iterator[tarfile.TarInfo]:
    """Members of a TarFile that was opened with ``ignore_zeros``, in order; damage is reported
    before the member behind it. Whether the file holds all of the last one, its size tells.

    In the end ``tar.offset`` is behind the last member, or behind what is damaged there.

    Raises:
        tarfile.ReadError: the file holds no member, and is no empty tar either.
        OSError: the storage, or the compression around the tar, fails.
    """
    end, found = 0, False
    while (member := _next(tar)) is not None:
        # tarfile keeps every member that it has seen
        tar.members.clear()
        following = tar.offset
        if member.offset != end:
            _check_gap(tar.fileobj, end, member.offset, on_damage)
        end, found = following, True
        yield member
    size = tar.fileobj.seek(0, 2)
    if not found and (
        size < tarfile.BLOCKSIZE or _first_not_zero(tar.fileobj, 0, size) is not None
    ):
        raise tarfile.ReadError("no header of a tar in it")
    if end > size:
        on_damage(Damage(offset=size, detail="the file ends within a member"))
    elif size - end < tarfile.BLOCKSIZE:
        detail = "the file ends without the end mark of a tar: it may have been cut"
        on_damage(Damage(offset=end, detail=detail, between=False))
    elif not _check_gap(tar.fileobj, end, size, on_damage):
        end = size
    tar.offset = end


def _next(tar: Any) -> tarfile.TarInfo | None:
    """The next member whose header is sound; None at the end of the file."""
    while True:
        try:
            return tar.next()
        except _BAD_HEADER:
            # a long name or a pax header whose second header is damaged, or the end of the file
            if tar.offset + tarfile.BLOCKSIZE >= tar.fileobj.seek(0, 2):
                return None
            tar.offset += tarfile.BLOCKSIZE


def _check_gap(file: BinaryIO, start: int, stop: int, on_damage: OnDamage) -> bool:
    """Whether what was passed over is zeros."""
    place = _first_not_zero(file, start, stop)
    if place is None:
        return True
    block = place - (place - start) % tarfile.BLOCKSIZE
    on_damage(Damage(offset=block, detail=f"no header of a tar up to byte {stop:,}"))
    return False


def _first_not_zero(file: BinaryIO, start: int, stop: int) -> int | None:
    file.seek(start)
    while start < stop and (chunk := file.read(min(_CHUNK, stop - start))):
        if rest := chunk.lstrip(b"\0"):
            return start + len(chunk) - len(rest)
        start += len(chunk)
    return None
