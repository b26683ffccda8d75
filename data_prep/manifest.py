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
from data_prep.shard_task import ShardRecord, load_record
from data_prep.workspace import Round, Workspace

FORMAT_VERSION = 1


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
        kept_entries.write(b"\n]\n")
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
    return summarize(workspace)


def load_manifest(workspace: Workspace) -> dict[str, Any]:
    """The manifest; FileNotFoundError where the folder is not complete."""
    return orjson.loads(workspace.manifest.read_bytes())


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
