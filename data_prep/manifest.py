"""Close a run: write the quarantine, the filtered JSON and, last, the manifest."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from data_prep.durable import atomic_write, write_durably
from data_prep.options import Options
from data_prep.plan import RoundPlan, load_plan, read_planned
from data_prep.quarantine import quarantined_indices
from data_prep.shard_task import ShardRecord, load_record
from data_prep.workspace import (
    Round,
    Workspace,
    WorkspaceError,
    listed,
    read_json,
    unreadable,
)

FORMAT_VERSION = 1
#: What is read of a manifest.
_KEYS = frozenset(
    {
        *("json", "entries", "kept", "rejected", "repairs", "conversions", "images", "bytes"),
        *("shards", "rounds"),
    }
)
#: How the filtered JSON ends.
_END = b"\n]\n"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a finished output folder: entries == kept + rejected."""

    entries: int
    kept: int
    images: int
    videos: int
    rejected: dict[str, int]  #: by reason, the most frequent first
    repairs: dict[str, int]
    conversions: dict[str, int]
    num_shards: int
    bytes: int
    filtered_json: Path


def close_rounds(workspace: Workspace, rounds: list[Round], options: Options) -> Summary:
    """Write the closing files from the records of all rounds; the manifest comes last."""
    plans = [load_plan(one.plan) for one in rounds]
    last = len(rounds) - 1
    shards: list[dict[str, Any]] = []
    sources: Counter[str] = Counter()
    conversions: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    rejected: Counter[str] = Counter(plans[last].rejected)
    filtered = workspace.filtered(plans[0].json_name)
    with atomic_write(workspace.quarantine) as quarantine, atomic_write(filtered) as kept_entries:
        kept_entries.write(b"[")
        quarantine.write(rounds[last].rejects.read_bytes())
        separator = b"\n"
        for number, (one, plan) in enumerate(zip(rounds, plans, strict=True)):
            repairs.update(plan.repairs)
            for record, lines in _records(one, plan):
                shards.append(_shard_line(record))
                sources.update(record.sources)
                conversions.update(record.conversions)
                if number == last:
                    # what an earlier round rejected was tried again in a later one
                    rejected.update(record.rejected)
                    for reject in record.rejects:
                        quarantine.write(orjson.dumps(reject) + b"\n")
                for line in lines:
                    kept_entries.write(separator + line)
                    separator = b",\n"
        kept_entries.write(_END)
    kept = sum(shard["samples"] for shard in shards)
    entries = plans[0].entries
    if kept + rejected.total() != entries:
        raise AssertionError(f"{kept} kept + {rejected.total()} rejected != {entries} entries")
    manifest = {
        "format": FORMAT_VERSION,
        "json": plans[0].json_name,
        "options": options.as_json(),
        "entries": entries,
        "kept": kept,
        "rejected": dict(sorted(rejected.items())),
        "repairs": dict(sorted(repairs.items())),
        "conversions": dict(sorted(conversions.items())),
        "sources": dict(sorted(sources.items())),
        "images": sum(shard["images"] for shard in shards),
        "videos": sum(shard["videos"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": [shard for shard in shards if shard["samples"]],
        "empty_shards": [shard["name"] for shard in shards if not shard["samples"]],
        "rounds": len(rounds),
    }
    write_durably(workspace.manifest, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
    for path in (workspace.quarantine, filtered, workspace.manifest):
        workspace.deliver(path)
    return summarize(workspace)


def load_manifest(workspace: Workspace) -> dict[str, Any]:
    """The manifest; FileNotFoundError where the folder is not complete.

    Raises WorkspaceError for one that is not as it was written.
    """
    manifest = read_json(workspace.manifest)
    lacking = _KEYS - (manifest.keys() if isinstance(manifest, dict) else set())
    if lacking:
        raise unreadable(workspace.manifest, f"no {', '.join(sorted(lacking))} in it")
    return manifest


def is_closed(workspace: Workspace, rounds: list[Round]) -> bool:
    """The manifest covers all rounds, and the files that it speaks of are there and whole."""
    try:
        manifest = load_manifest(workspace)
        quarantined = quarantined_indices(workspace.quarantine)
    except (FileNotFoundError, WorkspaceError):
        return False
    filtered = workspace.filtered(manifest["json"])
    return (
        manifest["rounds"] == len(rounds)
        and len(quarantined) == manifest["entries"] - manifest["kept"]
        and filtered.is_file()
        and _last_bytes(filtered, len(_END)) == _END
        and not lost_shards(workspace, manifest)
    )


def check_closed(workspace: Workspace) -> dict[str, Any] | None:
    """The manifest of a finished conversion; None for shards that were not made here.

    Raises:
        WorkspaceError: a conversion was begun and not finished, or shards of it are lost.
    """
    rounds = workspace.rounds()
    begun = bool(rounds) or workspace.settings.exists()
    again = f"run the command that converts into {workspace.root} again; it makes what is missing"
    try:
        manifest = load_manifest(workspace)
    except FileNotFoundError as error:
        if not begun:
            return None
        raise WorkspaceError(
            f"the conversion into {workspace.root} is not finished{_progress(workspace, rounds)}: "
            f"{again}"
        ) from error
    except WorkspaceError as error:
        raise WorkspaceError(f"{error}: {again}" if begun else f"{error}: copy it again") from error
    if rounds and manifest["rounds"] < len(rounds):
        raise WorkspaceError(
            f"a --retry-quarantined of {workspace.root} is not finished"
            f"{_progress(workspace, rounds)}: {again}"
        )
    lost = lost_shards(workspace, manifest)
    if lost:
        mend = f"copy them again, or {again}" if begun else "copy them again"
        raise WorkspaceError(
            f"{workspace.root} lacks {len(lost)} of the {len(manifest['shards'])} shards of its "
            f"manifest, or has them in another size ({listed(lost)}): {mend}"
        )
    return manifest


def lost_shards(workspace: Workspace, manifest: dict[str, Any]) -> list[str]:
    """Shards of the manifest that are not there, or in another size."""
    sizes = workspace.sizes()
    return [s["name"] for s in manifest["shards"] if sizes.get(s["name"]) != s["bytes"]]


def _progress(workspace: Workspace, rounds: list[Round]) -> str:
    try:
        planned = [shard for one in rounds for shard in load_plan(one.plan).shards]
    except WorkspaceError:
        planned = []
    made = sum(workspace.shard(shard.number).exists() for shard in planned)
    return f" ({made} of {len(planned)} shards are there)" if planned else ""


def _last_bytes(path: Path, number: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - number))
        return file.read()


def summarize(workspace: Workspace) -> Summary:
    """Counts of a complete folder, from its manifest."""
    manifest = load_manifest(workspace)
    return Summary(
        entries=manifest["entries"],
        kept=manifest["kept"],
        images=manifest["images"],
        videos=manifest.get("videos", 0),
        rejected=dict(Counter(manifest["rejected"]).most_common()),
        repairs=manifest["repairs"],
        conversions=manifest["conversions"],
        num_shards=len(manifest["shards"]),
        bytes=manifest["bytes"],
        filtered_json=workspace.filtered(manifest["json"]),
    )


def _records(source: Round, plan: RoundPlan) -> Iterator[tuple[ShardRecord, Iterator[bytes]]]:
    for shard in plan.shards:
        record = load_record(source.record(shard.number))
        dropped = {reject["index"] for reject in record.rejects}
        planned = read_planned(source, shard)
        yield record, (entry.raw for entry in planned if entry.index not in dropped)


def _shard_line(record: ShardRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "samples": record.samples,
        "images": record.images,
        "videos": record.videos,
        "bytes": record.bytes,
        "sha256": record.sha256,
    }
