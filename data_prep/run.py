"""Run a conversion: plan, make the missing shards, close."""

from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from data_prep.archives import reading_note, remove_unpacked, unread_archives
from data_prep.durable import remove_partials, write_durably
from data_prep.earlier import made_shards, refuse_foreign_tars, sound_rounds
from data_prep.executor import Executor
from data_prep.locate import Locator
from data_prep.manifest import Summary, close_rounds, is_closed, load_manifest, summarize
from data_prep.mirror import open_workspace
from data_prep.options import DEFAULT_SHARD_SIZE, Options, flag
from data_prep.plan import RoundPlan, load_plan, make_plan
from data_prep.progress import Reporter
from data_prep.quarantine import quarantined_indices
from data_prep.shard_task import ShardTask, load_record
from data_prep.sources import ReadOptions, Source, TarSource, describe, open_source
from data_prep.tar_index import TarIndex
from data_prep.workspace import Round, Workspace, WorkspaceError, read_json


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to prepare and where to."""

    data_dir: Path
    output_dir: str | Path  #: a folder, or the URL of one in an object store
    json: Path | None  #: file of the entries; None: the only one in the data folder
    options: Options
    format: str | None = "llava"  #: of `data_prep.sources`; None: as the content has it
    reading: ReadOptions = field(default_factory=ReadOptions)
    retry_quarantined: bool = False

    def open_source(self) -> Source:
        """The source that it names; raises SourceError where that is not clear."""
        return open_source(
            self.data_dir,
            self.json,
            self.format,
            self.reading,
            in_order=self.options.shuffle_seed is None,
            exact_sizes=self.options.shard_bytes is not None,
        )


def run(job: Job, executor: Executor, reporter: Reporter) -> Summary:
    """Complete the output folder; finished shards are not made again.

    Raises SourceError, WorkspaceError or ExecutorError, with what to do; a rejected entry is no
    error.
    """
    source = job.open_source()
    if job.format is None:
        reporter.note(f"format: {source.format} ({source.name})")
    for line in describe(source):
        reporter.note(line)
    workspace = open_workspace(job.output_dir)
    if workspace.root.resolve() == job.data_dir.resolve():
        raise WorkspaceError("--output-dir is --data-dir; its tars would be taken for sources")
    with workspace.locked():
        workspace.pull()
        rounds = sound_rounds(workspace, reporter)
        refuse_foreign_tars(workspace, rounds)
        remove_partials(workspace.root)
        _check_settings(workspace, job.options, source)
        planner = _Planner(job, workspace, source, reporter)
        planner.check_same_json(rounds)
        if not rounds:
            rounds = [planner.plan_all()]
        elif is_closed(workspace, rounds):
            retried = planner.plan_retry(rounds) if job.retry_quarantined else None
            if retried is None:
                remove_unpacked(workspace.index)
                reporter.note(f"{workspace.shown} is complete; nothing to do")
                return summarize(workspace)
            rounds.append(retried)
        _make_missing(job, workspace, rounds, executor, planner, reporter)
        remove_unpacked(workspace.index)
        if len(rounds) > 1 and _changed_nothing(workspace, rounds[-1]):
            # so that trying again what stays broken leaves the folder as it was
            workspace.discard(rounds[-1])
            reporter.note("none of the rejected entries can be used now either")
            return summarize(workspace)
        return close_rounds(workspace, rounds, job.options)


class _Planner:
    """Plans rounds over the source of a job."""

    def __init__(self, job: Job, workspace: Workspace, source: Source, reporter: Reporter) -> None:
        self._job = job
        self._workspace = workspace
        self._source = source
        self._reporter = reporter
        self._inputs = source.inputs()

    def plan_all(self) -> Round:
        target = self._workspace.round(0)
        plan = self._plan(target, self._job.options, only=None, first_shard=0)
        if (
            self._job.options.shard_size is None
            and 0 < plan.shard_size < DEFAULT_SHARD_SIZE
            and plan.shards
        ):
            self._reporter.note(
                f"{len(plan.shards)} shards of about {plan.shard_size} samples, not of 10,000, so "
                "that a split of 8,1,1 leaves no part empty (--shard-size decides otherwise)"
            )
        return target

    def plan_retry(self, rounds: list[Round]) -> Round | None:
        """A further round with what is in quarantine; None where none of it is accepted now."""
        plans = [load_plan(one.plan) for one in rounds]
        retried = quarantined_indices(self._workspace.quarantine)
        target = self._workspace.round(len(rounds))
        first_shard = sum(len(plan.shards) for plan in plans)
        options = replace(self._job.options, shard_size=plans[0].shard_size)
        plan = self._plan(target, options, only=retried, first_shard=first_shard)
        if plan.shards:
            self._reporter.note(f"{len(retried):,} rejected entries are tried again")
            return target
        self._workspace.discard(target)
        self._reporter.note(f"none of the {len(retried):,} rejected entries can be used now either")
        return None

    def make_readable(self) -> None:
        """Unpack what shards are made from, where that went after an earlier run."""
        with TarIndex(self._workspace.index) as index:
            index.update(list(self._source.tars), self._say_indexing)

    def check_unchanged(self, plan: RoundPlan) -> None:
        """Raise where the input is not what an unfinished round was planned from."""
        self._compare(plan, list(plan.inputs))

    def check_same_json(self, rounds: list[Round]) -> None:
        """Raise where the folder was planned from other entries."""
        for plan in (load_plan(one.plan) for one in rounds):
            if self._source.name != plan.json_name:
                raise WorkspaceError(
                    f"{self._workspace.shown} was made from {plan.json_name}, not from "
                    f"{self._source.name}; use another --output-dir"
                )
            self._compare(plan, [plan.json_name])

    def _compare(self, plan: RoundPlan, names: list[str]) -> None:
        for name in names:
            if self._inputs.get(name) != plan.inputs[name]:
                now = self._inputs.get(name)
                raise WorkspaceError(
                    f"{name} has changed since {self._workspace.shown} was planned (size and mtime "
                    f"{plan.inputs[name]} then, {now or 'not there'} now); put the old one back, "
                    "or use another --output-dir"
                )

    def _plan(
        self, target: Round, options: Options, *, only: set[int] | None, first_shard: int
    ) -> RoundPlan:
        with TarIndex(self._workspace.index) as index:
            tars = list(self._source.tars)
            index.update(tars, self._say_indexing)
            for fault in (*index.faults(), *unread_archives(self._job.data_dir)):
                self._reporter.note(fault)
            locator = Locator(self._job.data_dir, tars, index)
            with self._reporter.planning() as meter:
                plan = make_plan(
                    target,
                    self._source,
                    locator,
                    options,
                    inputs=self._inputs,
                    only=only,
                    first_shard=first_shard,
                    on_entry=meter.advance,
                )
        if plan.shards or first_shard == 0:
            self._workspace.deliver_round(target)
        return plan

    def _say_indexing(self, tar: TarSource) -> None:
        note = reading_note(tar.path)
        text = f"indexing {tar.name} ({tar.size / 1e6:,.1f} MB)"
        self._reporter.note(f"{text}: {note}" if note else text)


def _make_missing(
    job: Job,
    workspace: Workspace,
    rounds: list[Round],
    executor: Executor,
    planner: _Planner,
    reporter: Reporter,
) -> None:
    tasks = []
    source_bytes = num_shards = 0
    for number, one in enumerate(rounds):
        plan = load_plan(one.plan)
        made = made_shards(workspace, one, plan.shards)
        missing = [shard for shard in plan.shards if shard.number not in made]
        if missing:
            planner.check_unchanged(plan)
        num_shards += len(plan.shards)
        source_bytes += plan.source_bytes * len(missing) // max(len(plan.shards), 1)
        tasks += [
            ShardTask(
                # a worker elsewhere has another working folder
                data_dir=job.data_dir.absolute(),
                workspace=workspace.absolute(),
                round_number=number,
                shard=shard,
                options=job.options,
            )
            for shard in missing
        ]
    if not tasks:
        return
    planner.make_readable()
    if len(tasks) < num_shards:
        reporter.note(
            f"{num_shards - len(tasks)} of {num_shards} shards are there; making the rest"
        )
    with reporter.converting(source_bytes) as meter:
        for _ in executor.run(tasks, meter.tick):
            pass
    for folder in (workspace.root, *{one.record(0).parent for one in rounds}):
        remove_partials(folder)


def _changed_nothing(workspace: Workspace, last: Round) -> bool:
    """The round kept nothing, and rejected for the reasons that the manifest has already."""
    plan = load_plan(last.plan)
    records = [load_record(last.record(shard.number)) for shard in plan.shards]
    rejected = Counter(plan.rejected)
    for record in records:
        rejected.update(record.rejected)
    kept_nothing = not any(record.samples for record in records)
    return kept_nothing and rejected == load_manifest(workspace)["rejected"]


def _check_settings(workspace: Workspace, options: Options, source: Source) -> None:
    """Shards of one folder are made with one set of options and one set of codecs.

    What an older version did not write down was as the default is.
    """
    current: dict[str, Any] = {
        "format": source.format,
        "reading": source.options.as_json(),
        "options": options.as_json(),
        "versions": {name: version(name) for name in ("pillow", "simplejpeg")},
    }
    if not workspace.settings.exists():
        write_durably(workspace.settings, orjson.dumps(current, option=orjson.OPT_INDENT_2))
        workspace.deliver(workspace.settings)
        return
    try:
        before = read_json(workspace.settings)
        then = {"format": before.get("format", "llava")} | Options().as_json() | before["options"]
        then |= ReadOptions().as_json() | before.get("reading", {})
        versions = dict(before["versions"])
    except (WorkspaceError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise WorkspaceError(
            f"{workspace.settings} cannot be read ({error}), so that the options of the shards are "
            "not known: if they are those of this command, remove that file and go on; if not, "
            "use another --output-dir"
        ) from error
    now = {"format": source.format} | current["options"] | current["reading"]
    changed = [
        f"{flag(name)} was {then[name]}, is {value}"
        for name, value in now.items()
        if then[name] != value
    ]
    changed += [
        f"{name} was {versions.get(name)}, is {value}"
        for name, value in current["versions"].items()
        if versions.get(name) != value
    ]
    if changed:
        raise WorkspaceError(
            f"{workspace.shown} was begun with other settings: {'; '.join(changed)}. Go on with "
            "those, or use another --output-dir"
        )
