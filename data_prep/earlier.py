"""What earlier runs left in an output folder: sound rounds, finished shards, tars of others."""

from data_prep.plan import PlannedShard, check_round, load_plan
from data_prep.progress import Reporter
from data_prep.shard_task import load_record
from data_prep.shards import SHARD_SUFFIXES, shard_names
from data_prep.workspace import Round, Workspace, WorkspaceError


def sound_rounds(workspace: Workspace, reporter: Reporter) -> list[Round]:
    """Rounds whose files can be read; a broken one goes, to be planned and made again.

    Later rounds and their shards go with it: what they hold depends on it.
    """
    rounds = workspace.rounds()
    first_shard = 0
    for number, one in enumerate(rounds):
        try:
            check_round(one)
        except WorkspaceError as error:
            reporter.note(f"{error}; its shards are made again")
            for name in workspace.sizes():
                digits = name.removeprefix("pretrain-").removesuffix(".tar")
                if digits.isdigit() and int(digits) >= first_shard:
                    workspace.remove_shard(name)
            for later in reversed(rounds[number:]):
                workspace.discard(later)
            return rounds[:number]
        first_shard += len(load_plan(one.plan).shards)
    return rounds


def made_shards(workspace: Workspace, one: Round, planned: tuple[PlannedShard, ...]) -> set[int]:
    """Numbers of the shards that are there with their records."""
    sizes = workspace.sizes()
    made = set()
    for shard in planned:
        try:
            record = load_record(one.record(shard.number))
        except (FileNotFoundError, WorkspaceError):
            continue
        if not record.samples or sizes.get(record.name) == record.bytes:
            made.add(shard.number)
    return made


def refuse_foreign_tars(workspace: Workspace, rounds: list[Round]) -> None:
    """Energon takes every tar below the folder for a shard."""
    planned = {
        workspace.shard(shard.number).name for one in rounds for shard in load_plan(one.plan).shards
    }
    there = {*shard_names(workspace.root), *workspace.sizes()}
    foreign = sorted(n for n in there - planned if n.endswith(SHARD_SUFFIXES))
    if foreign:
        raise WorkspaceError(
            f"{workspace.shown} holds {len(foreign)} tars of another origin ({foreign[0]} …), "
            "which Energon would take for shards; use an empty --output-dir or move them away"
        )
