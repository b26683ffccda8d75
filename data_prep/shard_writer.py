"""Writing one shard: a plain tar whose bytes depend on its members only."""

import hashlib
import os
import tarfile
from pathlib import Path
from types import TracebackType

from data_prep.durable import partial_path, publish

_BUFFER = 4 * 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE


class ShardWriter:
    """Writes beside the shard's place; `publish` makes it appear, whole and durable.

    Leaving the context without `publish` removes what was written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_path(path)
        self._file = self._partial.open("wb", buffering=_BUFFER)
        self._hash = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, name: str, data: bytes) -> None:
        """Append a file; its owner, mode and time are constant."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % _BLOCK))

    def publish(self) -> tuple[int, str]:
        """Finish the shard under its name; its bytes and SHA-256."""
        self._write(bytes(2 * _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        publish(self._partial, self._path)
        return self._size, self._hash.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
