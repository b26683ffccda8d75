"""Folders in object stores, through the client that Energon itself reads them with.

A URL is ``s3://BUCKET/FOLDER`` (also ``gs://``) or ``msc://PROFILE/FOLDER``, with the profile in
the client's own file (``MSC_CONFIG``, ``~/.msc_config.yaml``). Credentials and endpoints come from
where the store's own tools take them (``AWS_…`` variables, ``~/.aws``), never from a URL.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard, cast

_URL = re.compile(r"(s3|gs|ais|msc)://([^/]+)(/.*)?", re.DOTALL)
#: How the client calls the profile of a bucket that is in no file of profiles.
_BUCKET_PROFILE = re.compile(r"msc://_(s3|gs|ais)-")


class WorkspaceError(RuntimeError):
    """A folder of shards cannot be used as asked; the message says what to do."""


def is_url(path: object) -> TypeGuard[str]:
    """Is it a folder in an object store, as text?"""
    return isinstance(path, str) and bool(_URL.match(path))


def is_remote(path: object) -> bool:
    """Is it a path that `folder_at` made of a URL?"""
    return not isinstance(path, str | Path)


def energon_url(path: str) -> str:
    """A data path as Energon 7.4.1 takes it, which knows buckets by the client's profiles only.

    Raises WorkspaceError for a URL that holds credentials: it would go into logs and run folders.
    """
    match = _URL.match(path)
    if match is None:
        return path
    scheme, place, rest = match.groups(default="")
    if "@" in place or ":" in place:
        raise WorkspaceError(
            f"{scheme}://… holds more than a bucket's name before its folder: credentials and "
            "endpoints belong into the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …) or into "
            "the files of the store's own tools"
        )
    return path if scheme == "msc" else f"msc://_{scheme}-{place}{rest}"


def readable(text: str) -> str:
    """A message with URLs as they are typed."""
    return _BUCKET_PROFILE.sub(r"\1://", text)


def folder_at(path: str | Path) -> Path:
    """A local path, or the like of one for a URL: `/`, `read_bytes`, `is_file`, `stat`, `unlink` …

    Raises WorkspaceError where the client lacks what the store needs.
    """
    if not is_url(path):
        return cast(Path, path) if is_remote(path) else Path(path)
    if path.startswith("s3://") and find_spec("boto3") is None:
        # the client's own advice would change pinned versions
        raise WorkspaceError(f"{path} needs boto3: pip install '.[s3]'")
    with explained(path):
        import multistorageclient

        return cast(Path, multistorageclient.Path(energon_url(path).rstrip("/")))


def sizes(root: Path) -> dict[str, int]:
    """Bytes of every object below a remote folder, by its name from there."""
    remote = cast(Any, root)
    with explained(root):
        inside = str(remote._internal_path).strip("/")
        prefix = "" if inside == "." else f"{inside}/"
        listed = remote._storage_client.list(path=prefix)
        return {item.key[len(prefix) :]: item.content_length for item in listed}


def local_copy(path: Path) -> Path:
    """A file that a library opens by name; a remote one is copied to where Energon copies it."""
    if not is_remote(path):
        return path
    from megatron.energon.epathlib import EPath
    from megatron.energon.local_copy import ensure_local_copy

    with explained(path):
        return ensure_local_copy(EPath(str(path))).local_path()


@contextmanager
def explained(place: str | Path) -> Iterator[None]:
    """Raise WorkspaceError, in one line, for what the client and the store's own library raise.

    Where ``place`` is a local path, every error stays what it is.
    """
    url = str(place)
    try:
        yield
    except (FileNotFoundError, WorkspaceError):
        raise
    except Exception as error:
        if isinstance(place, Path):
            raise
        # botocore's errors, and those that the client makes of them, have no common base
        reason = " ".join(str(error).split())
        raise WorkspaceError(f"{readable(url)} cannot be used: {reason}") from error


class Bucket:
    """A remote folder as a place for finished files: each is there as a whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = folder_at(url)

    def sizes(self) -> dict[str, int]:
        """Bytes by name."""
        return sizes(self._root)

    def upload(self, path: Path, name: str) -> None:
        target = cast(Any, self._root / name)
        with explained(f"{self.url}/{name}"):
            target._storage_client.upload_file(str(target._internal_path), str(path))

    def download(self, name: str, path: Path) -> None:
        source = cast(Any, self._root / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        with explained(f"{self.url}/{name}"):
            source._storage_client.download_file(str(source._internal_path), str(partial))
        os.replace(partial, path)

    def remove(self, name: str) -> None:
        with explained(f"{self.url}/{name}"):
            (self._root / name).unlink(missing_ok=True)
