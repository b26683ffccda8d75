"""Whatever a reader yields goes through the same plan, tasks and close."""

import base64
import json
from typing import get_args

import orjson
import pytest
from raw_set import entry, jpeg, output_bytes, read_shards, write_plain_set
from rich.console import Console

from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.plan import PlannedEntry, from_line, to_line
from data_prep.progress import Reporter
from data_prep.quarantine import Reason
from data_prep.run import Job, run
from data_prep.sources import Location
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
def inline(tmp_path):
    """Messages that hold their images, and a line that cannot be read."""
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for index in range(8):
        image = "data:image/jpeg;base64," + base64.b64encode(jpeg(index)).decode()
        messages = [
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "A dog."},
        ]
        lines.append(json.dumps({"id": index, "messages": messages, "images": [image]}))
    (data / "set.jsonl").write_text("\n".join([*lines, '{"id": NaN}']))
    return data


def test_bytes_inside_entries_are_stored(inline, tmp_path):
    summary = go(inline, tmp_path / "one", source_format="messages")
    assert (summary.entries, summary.kept, summary.rejected) == (9, 8, {"malformed_entry": 1})
    samples = list(read_shards(tmp_path / "one").values())
    assert [parts["jpg"] for parts in samples] == [jpeg(index) for index in range(8)]
    assert json.loads(samples[5]["json"])["image"] == "set.jsonl#5"
    assert json.loads(samples[5]["json"])["source"] == "set"
    (line,) = map(json.loads, (tmp_path / "one" / "quarantine.jsonl").open())
    assert (line["index"], line["line"]) == (8, 9)
    assert "is no JSON" in line["detail"]
    go(inline, tmp_path / "two", engine=ProcessExecutor(2), source_format="messages")
    assert output_bytes(tmp_path / "one") == output_bytes(tmp_path / "two")


def test_another_format_is_another_workspace(inline, tmp_path):
    go(inline, tmp_path / "out", source_format="messages")
    with pytest.raises(WorkspaceError, match="--format was messages, is llava"):
        go(inline, tmp_path / "out")


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
    assert set(get_args(RefusalReason)) <= {reason.value for reason in Reason}


@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_a_bad_entry_is_quarantined_with_its_line(tmp_path, name):
    """NaN, a lone surrogate (in the text, in the id), bytes that are no UTF-8, after a BOM."""
    write_plain_set(tmp_path / "data", 6)
    (tmp_path / "data" / "cambrian737k.json").unlink()
    lines = []
    for index in range(6):
        said = {"from": "gpt", "value": "\ud800" if index == 2 else "A dog."}
        made = entry("\udfff" if index == 4 else f"e{index}", f"ai2d/images/{index}.jpg")
        made["conversations"][1] = said
        made |= {"score": float("nan")} if index == 1 else {}
        lines.append(json.dumps(made).encode())
    lines[3] = lines[3].replace(b"A dog", b"A \xff")
    in_list = name == "set.json"
    body = b"[" + b",\n".join(lines) + b"]" if in_list else b"\n".join(lines)
    (tmp_path / "data" / name).write_bytes(b"\xef\xbb\xbf" + body)
    summary = go(tmp_path / "data", tmp_path / "out")
    assert (summary.entries, summary.kept) == (6, 2)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").open()]
    assert [(r["index"], r["line"]) for r in rejects] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert {r["reason"] for r in rejects} == {"malformed_entry"}
    assert "JSON" in rejects[0]["detail"]
