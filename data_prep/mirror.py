"""An output folder in an object store, worked on in a mirror on this machine.

The bucket holds what a local output folder would: shards, manifest, quarantine and, below
``.data_prep/``, the plan and a record of every shard, so that any machine goes on with it. The
mirror, below ``~/.cache/dct_vl/outputs`` (``XDG_CACHE_HOME``), holds the same without the shards,
and the index of the source tars; it may be removed at any time.

What a local run publishes by renaming is uploaded as a whole, in the same order: a round's plan
behind its entries, a record behind its shard, the manifest last. Two machines must not convert into
one folder at once: the lock is the mirror's.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_prep.remote import Bucket, is_url
from data_prep.workspace import Round, Workspace

_NUM_THREADS = 16
#: Small files that may change without changing their size.
_FETCHED_ANEW = ("settings.json", "plan.json", "manifest.json", "quarantine.jsonl")


@dataclass(frozen=True)
class MirroredWorkspace(Workspace):
    """A `Workspace` whose files come from a bucket and go there."""

    url: str

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.url)

    @property
    def shown(self) -> str:
        return self.url

    def pull(self) -> None:
        """Make the mirror what the bucket holds."""
        bucket = self.bucket
        there = {name: size for name, size in bucket.sizes().items() if self._is_state(name)}
        for path in [path for path in self.root.rglob("*") if path.is_file()]:
            name = path.relative_to(self.root).as_posix()
            if self.index in path.parents or path.name == "lock":
                continue
            if path.name in _FETCHED_ANEW or path.stat().st_size != there.get(name):
                path.unlink()
        missing = [name for name in there if not (self.root / name).exists()]
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for _ in pool.map(lambda name: bucket.download(name, self.root / name), missing):
                pass

    def deliver(self, path: Path) -> None:
        """Upload a finished file; a shard needs no place here any more."""
        self.bucket.upload(path, path.relative_to(self.root).as_posix())
        if path.suffix == ".tar":
            path.unlink()

    def discard(self, one: Round) -> None:
        bucket = self.bucket
        prefix = one.folder.relative_to(self.root).as_posix()
        names = [name for name in bucket.sizes() if name.startswith(f"{prefix}/")]
        # without its plan it is no round any more
        for name in sorted(names, key=lambda name: not name.endswith("/plan.json")):
            bucket.remove(name)
        super().discard(one)

    def remove_shard(self, name: str) -> None:
        self.bucket.remove(name)

    def sizes(self) -> dict[str, int]:
        return self.bucket.sizes()

    def _is_state(self, name: str) -> bool:
        if name.startswith(".data_prep/"):
            return name != ".data_prep/prepared.json"
        return name in (self.manifest.name, self.quarantine.name) or (
            "/" not in name and name.endswith("_filtered.json")
        )


def open_workspace(output: str | Path) -> Workspace:
    """The output folder of a conversion: local, or in the object store of a URL."""
    if not is_url(output):
        return Workspace(Path(output))
    url = output.rstrip("/")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    return MirroredWorkspace(cache / "dct_vl" / "outputs" / name, url)
