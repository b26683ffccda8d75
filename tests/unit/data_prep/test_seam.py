"""Whatever a reader yields goes through the same plan, tasks and close."""

import json

import orjson
import pytest
from raw_set import conversation, jpeg, output_bytes, read_shards, write_plain_set
from rich.console import Console

from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.plan import PlannedEntry, from_line, to_line
from data_prep.progress import Reporter
from data_prep.quarantine import Reason
from data_prep.run import Job, run
from data_prep.sources import Entry, Inline, Location, Media, Refusal, formats
from data_prep.sources.entry import RefusalReason
from data_prep.workspace import Workspace, WorkspaceError


def go(data, output, engine=None, source_format="llava"):
    job = Job(
        data_dir=data,
        output_dir=output,
        json=None,
        options=Options(shard_size=3),
        format=source_format,
    )
    return run(job, engine or InProcessExecutor(), Reporter(Console(quiet=True)))


def test_plan_lines_are_read_back():
    inline = Location(source="s", file="a.jsonl", offset=7, size=3, place="spool")
    cell = Location(source="s", file="a.parquet", offset=1, size=3, place="row", column="image")
    video = Location(source="v", file="v.tar", offset=512, size=9)
    planned = PlannedEntry(
        index=4,
        paths=("a.jsonl#4", "b"),
        images=(inline, cell),
        video_paths=("v/a.mp4",),
        videos=(video,),
        raw=b'{"id":1}',
    )
    assert from_line(to_line(planned)) == planned
    assert planned.source_bytes == 15


def test_plan_lines_of_older_workspaces_are_read():
    line = b'[3,["a/1.jpg"],[["a","a.tar",512,99]]]\t{"id":1}\n'
    planned = from_line(line)
    assert to_line(planned) == line
    assert planned.images == (Location(source="a", file="a.tar", offset=512, size=99),)
    assert planned.videos == ()


@pytest.fixture
def spoken(monkeypatch, tmp_path):
    """A format whose entries hold their images, beside one that cannot be read."""

    def read(source):
        for index in range(8):
            media = Media(
                kind="image",
                path=f"set.json#{index}",
                held=Inline(file="set.json", data=jpeg(index)),
            )
            raw = {"id": index, "image": media.path}
            yield Entry(
                index=index, raw=raw, id=index, conversations=conversation(), media=(media,)
            )
        yield Refusal(index=8, line=9, raw=None, reason="malformed_entry", detail="no JSON")

    monkeypatch.setitem(formats._READERS, "spoken", read)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set.json").write_text("[]")
    return tmp_path / "data"


def test_bytes_inside_entries_are_stored(spoken, tmp_path):
    summary = go(spoken, tmp_path / "one", source_format="spoken")
    assert (summary.entries, summary.kept, summary.rejected) == (9, 8, {"malformed_entry": 1})
    samples = list(read_shards(tmp_path / "one").values())
    assert [parts["jpg"] for parts in samples] == [jpeg(index) for index in range(8)]
    assert json.loads(samples[5]["json"])["image"] == "set.json#5"
    assert json.loads(samples[5]["json"])["source"] == "set"
    (line,) = map(json.loads, (tmp_path / "one" / "quarantine.jsonl").open())
    assert (line["index"], line["line"], line["detail"]) == (8, 9, "no JSON")
    go(spoken, tmp_path / "two", engine=ProcessExecutor(2), source_format="spoken")
    assert output_bytes(tmp_path / "one") == output_bytes(tmp_path / "two")


def test_another_format_is_another_workspace(spoken, tmp_path):
    go(spoken, tmp_path / "out", source_format="spoken")
    with pytest.raises(WorkspaceError, match="--format was spoken, is llava"):
        go(spoken, tmp_path / "out")


def test_a_workspace_of_an_older_version_is_completed(tmp_path):
    write_plain_set(tmp_path / "data", 7)
    go(tmp_path / "data", tmp_path / "out")
    expected = output_bytes(tmp_path / "out")
    settings = Workspace(tmp_path / "out").settings
    fields = orjson.loads(settings.read_bytes())
    del fields["format"]
    settings.write_bytes(orjson.dumps(fields))
    (tmp_path / "out" / ".data_prep" / "round-0" / "media.bin").unlink()
    (tmp_path / "out" / "pretrain-000001.tar").unlink()
    go(tmp_path / "data", tmp_path / "out")
    assert output_bytes(tmp_path / "out") == expected


def test_every_refusal_has_a_reason_of_the_closed_list():
    assert set(RefusalReason.__args__) <= {reason.value for reason in Reason}
