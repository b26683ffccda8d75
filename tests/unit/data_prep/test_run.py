import json

import orjson
import pytest
from raw_set import (
    conversation,
    encoded,
    entry,
    jpeg,
    output_bytes,
    picture,
    read_shards,
    write_json,
    write_plain_set,
    write_tar,
)
from rich.console import Console

from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.quarantine import missing_by_folder
from data_prep.run import Job, run
from data_prep.sample_key import decode_key
from data_prep.schema import image_parts, parse_record
from data_prep.sources import SourceError
from data_prep.workspace import Workspace, WorkspaceError


def go(data, output, engine=None, retry=False, json_path=None, **options):
    job = Job(
        data_dir=data,
        output_dir=output,
        json=json_path,
        options=Options(**options),
        retry_quarantined=retry,
    )
    return run(job, engine or InProcessExecutor(), Reporter(Console(quiet=True)))


def quarantine(output):
    return [json.loads(line) for line in (output / "quarantine.jsonl").open()]


@pytest.fixture
def mixed(tmp_path):
    """Tars, an extracted folder, several images, text only, and defects."""
    data = tmp_path / "data"
    (data / "coco").mkdir(parents=True)
    (data / "coco" / "1.jpg").write_bytes(jpeg(1))
    png = encoded(picture(2), "PNG")
    write_tar(
        data / "ai2d.tar",
        {
            "ai2d/a.jpg": jpeg(3),
            "./ai2d/b.png": png,
            "ai2d/cut.jpg": jpeg(4)[:-300],
            "ai2d/ümlaut.jpg": jpeg(5),
        },
    )
    write_tar(data / "chartqa.tar.gz", {"train/c.jpg": jpeg(6)}, mode="w:gz")
    entries = [
        entry("ai2d/a", "ai2d/a.jpg"),
        entry("ai2d/b.png", "ai2d/b.png"),
        entry(7, "ai2d/cut.jpg"),
        entry("ü", "ai2d/ümlaut.jpg"),
        entry("c", "chartqa/train/c.jpg"),
        entry("coco", "coco/1.jpg"),
        entry("two", ["ai2d/a.jpg", "coco/1.jpg"], question="<image><image>\nCompare."),
        entry("gone", "vg/1.jpg"),
        entry("words", question="Hello?"),
        entry("unmarked", "ai2d/a.jpg", question="What is it?"),
        "no entry",
    ]
    write_json(data, entries)
    return data


def test_mixed_sources(mixed, tmp_path):
    output = tmp_path / "out"
    summary = go(mixed, output)
    assert (summary.entries, summary.kept, summary.images) == (11, 7, 8)
    assert summary.rejected == {
        "truncated_image": 1,
        "missing_image": 1,
        "text_only": 1,
        "malformed_entry": 1,
    }
    assert summary.repairs == {"image_marks_added": 1}
    assert summary.conversions == {"png": 1}
    samples = read_shards(output)
    assert [decode_key(key) for key in samples] == [
        (0, "ai2d/a"),
        (1, "ai2d/b.png"),
        (3, "ü"),
        (4, "c"),
        (5, "coco"),
        (6, "two"),
        (9, "unmarked"),
    ]
    records = [parse_record(parts["json"]) for parts in samples.values()]
    assert [record.source for record in records] == [
        *("ai2d", "ai2d", "ai2d", "chartqa", "coco", "ai2d", "ai2d"),
    ]
    parts = list(samples.values())
    assert parts[0]["jpg"] == jpeg(3)
    assert image_parts(parts[5]) == ["0.jpg", "1.jpg"]
    assert (parts[5]["0.jpg"], parts[5]["1.jpg"]) == (jpeg(3), jpeg(1))
    assert records[5].images == ("ai2d/a.jpg", "coco/1.jpg")
    assert records[5].sizes == ((48, 64), (48, 64))
    assert records[6].turns[0].text == "<image>\nWhat is it?"


def test_quarantine_lines_say_where_and_why(mixed, tmp_path):
    go(mixed, tmp_path / "out")
    lines = {line["index"]: line for line in quarantine(tmp_path / "out")}
    cut = lines[2]
    assert (cut["id"], cut["file"], cut["reason"]) == (7, "ai2d.tar", "truncated_image")
    assert (mixed / "ai2d.tar").read_bytes()[cut["offset"] :].startswith(jpeg(4)[:-300])
    assert lines[7]["reason"] == "missing_image"
    assert "vg/1.jpg" in lines[7]["detail"]
    assert set(lines) == {2, 7, 8, 10}
    assert missing_by_folder(tmp_path / "out" / "quarantine.jsonl") == {"vg": 1}


def test_filtered_json_holds_what_the_shards_hold(mixed, tmp_path):
    summary = go(mixed, tmp_path / "out")
    kept = orjson.loads(summary.filtered_json.read_bytes())
    assert summary.filtered_json.name == "cambrian737k_filtered.json"
    kept_ids = [one["id"] for one in kept]
    assert kept_ids == ["ai2d/a", "ai2d/b.png", "ü", "c", "coco", "two", "unmarked"]
    assert kept[0] == entry("ai2d/a", "ai2d/a.jpg")
    assert not list(mixed.glob("*_filtered.json")), "the source folder stays as it is"


def test_text_only_is_kept_on_request(mixed, tmp_path):
    summary = go(mixed, tmp_path / "out", text_only="keep")
    assert summary.kept == 8
    words = [parts for parts in read_shards(tmp_path / "out").values() if set(parts) == {"json"}]
    assert parse_record(words[0]["json"]).source == "text"


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_workers(mixed, tmp_path, workers):
    go(mixed, tmp_path / "one", shuffle_seed=3)
    go(mixed, tmp_path / "many", engine=ProcessExecutor(workers), shuffle_seed=3)
    assert output_bytes(tmp_path / "one") == output_bytes(tmp_path / "many")


def test_shuffle_keeps_the_samples(mixed, tmp_path):
    go(mixed, tmp_path / "plain")
    go(mixed, tmp_path / "a", shuffle_seed=1)
    go(mixed, tmp_path / "b", shuffle_seed=2)
    plain, a, b = (list(read_shards(tmp_path / name).items()) for name in ("plain", "a", "b"))
    assert sorted(plain) == sorted(a) == sorted(b)
    assert plain != a != b


def test_shard_counts(tmp_path):
    write_plain_set(tmp_path / "data", 25)
    assert go(tmp_path / "data", tmp_path / "default").num_shards == 10
    assert go(tmp_path / "data", tmp_path / "ten", shard_size=10).num_shards == 3
    one = len(jpeg(0))
    assert go(tmp_path / "data", tmp_path / "bytes", shard_bytes=int(one * 2.5)).num_shards >= 10


def test_second_run_makes_nothing(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    go(mixed, output, engine=None)
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    times.pop(output / ".data_prep" / "lock")
    after.pop(output / ".data_prep" / "lock")
    assert times == after


def test_a_lost_shard_is_made_again(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    before = output_bytes(output)
    (output / "pretrain-000003.tar").unlink()
    (output / "pretrain-000005.tar.77.partial").write_bytes(b"left by a killed run")
    go(mixed, output)
    assert output_bytes(output) == before


def test_changed_options_are_refused_by_name(mixed, tmp_path):
    go(mixed, tmp_path / "out")
    with pytest.raises(WorkspaceError, match=r"--shuffle-seed was None, is 4; --verify|--verify"):
        go(mixed, tmp_path / "out", verify="none", shuffle_seed=4)


def test_changed_input_is_refused_while_shards_are_missing(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    (output / "pretrain-000000.tar").unlink()
    write_tar(mixed / "ai2d.tar", {"ai2d/a.jpg": jpeg(9)})
    with pytest.raises(WorkspaceError, match=r"ai2d\.tar has changed since"):
        go(mixed, output)


def test_retry_takes_the_quarantined_only(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    before = output_bytes(output)
    write_tar(mixed / "vg.tar", {"vg/1.jpg": jpeg(8)})
    summary = go(mixed, output, retry=True)
    assert (summary.kept, sum(summary.rejected.values())) == (8, 3)
    after = output_bytes(output)
    shards = [name for name in before if name.startswith("pretrain")]
    assert all(after[name] == before[name] for name in shards)
    gone = read_shards(output)["000000007-gone"]
    assert gone["jpg"] == jpeg(8)
    assert {line["id"] for line in quarantine(output)} == {7, "words", None}
    assert len(orjson.loads(summary.filtered_json.read_bytes())) == 8


def test_retry_with_nothing_new_changes_nothing(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    before = output_bytes(output)
    assert go(mixed, output, retry=True).kept == 7
    assert output_bytes(output) == before
    assert not (output / ".data_prep" / "round-1").exists()


def test_retry_tells_new_reasons(mixed, tmp_path):
    output = tmp_path / "out"
    go(mixed, output)
    write_tar(mixed / "vg.tar", {"vg/1.jpg": b"<html>"})
    summary = go(mixed, output, retry=True)
    assert summary.kept == 7
    assert (summary.rejected["not_an_image"], "missing_image" in summary.rejected) == (1, False)
    assert {line["id"]: line["reason"] for line in quarantine(output)}["gone"] == "not_an_image"


def test_nothing_kept(tmp_path):
    write_plain_set(tmp_path / "data", 3)
    (tmp_path / "data" / "ai2d.tar").unlink()
    summary = go(tmp_path / "data", tmp_path / "out")
    assert (summary.kept, summary.rejected) == (0, {"missing_image": 3})


def test_a_shard_of_rejects_leaves_no_file(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_tar(data / "s.tar", {"s/0.jpg": b"<html>", "s/1.jpg": jpeg(1)})
    write_json(data, [entry("0", "s/0.jpg"), entry("1", "s/1.jpg")])
    summary = go(data, tmp_path / "out")
    assert (summary.kept, summary.num_shards) == (1, 1)
    assert [p.name for p in (tmp_path / "out").glob("*.tar")] == ["pretrain-000001.tar"]


def test_refusals(mixed, tmp_path):
    with pytest.raises(WorkspaceError, match="--output-dir is --data-dir"):
        go(mixed, mixed)
    other = tmp_path / "other"
    write_plain_set(other, 1)
    with pytest.raises(WorkspaceError, match=r"tars of another origin \(ai2d\.tar"):
        go(mixed, other)
    with pytest.raises(SourceError, match="is not a folder"):
        go(tmp_path / "nowhere", tmp_path / "out")
    workspace = Workspace(tmp_path / "held")
    with workspace.locked(), pytest.raises(WorkspaceError, match="another run is writing"):
        go(mixed, tmp_path / "held")


def test_json_choice(mixed, tmp_path):
    write_json(mixed, [], name="cambrian737k_filtered.json")
    assert go(mixed, tmp_path / "a").entries == 11
    write_json(mixed, [entry("x", "ai2d/a.jpg")], name="more.json")
    with pytest.raises(SourceError, match=r"2 JSON files .*cambrian737k.json, more.json"):
        go(mixed, tmp_path / "b")
    assert go(mixed, tmp_path / "c", json_path=mixed / "more.json").entries == 1


def test_duplicate_ids_have_their_own_keys(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_tar(data / "s.tar", {"s/0.jpg": jpeg(1)})
    same = {"id": "same", "image": "s/0.jpg", "conversations": conversation()}
    write_json(data, [same, same])
    assert go(data, tmp_path / "out").kept == 2
    assert len(read_shards(tmp_path / "out")) == 2


def test_a_tar_that_ends_within_an_image(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    write_tar(data / "s.tar", {"s/0.jpg": jpeg(1), "s/1.jpg": jpeg(2)})
    whole = (data / "s.tar").read_bytes()
    (data / "s.tar").write_bytes(whole[: whole.rindex(jpeg(2)) + 700])
    write_json(data, [entry(str(i), f"s/{i}.jpg") for i in range(2)])
    assert go(data, tmp_path / "out").kept == 1
    (line,) = quarantine(tmp_path / "out")
    assert line["reason"] == "unreadable_source"
    assert f"ends {len(jpeg(2)) - 700} bytes before the image does" in line["detail"]


def test_a_file_that_is_gone_when_it_is_read(tmp_path):
    data = tmp_path / "data"
    (data / "s").mkdir(parents=True)
    for i in range(2):
        (data / "s" / f"{i}.jpg").write_bytes(jpeg(i))
    write_json(data, [entry(str(i), f"s/{i}.jpg") for i in range(2)])

    class Late(InProcessExecutor):
        def run(self, tasks, on_tick):
            (data / "s" / "1.jpg").unlink()
            return super().run(tasks, on_tick)

    summary = go(data, tmp_path / "out", engine=Late())
    assert (summary.kept, summary.rejected) == (1, {"unreadable_source": 1})


def test_other_entries_are_refused(mixed, tmp_path):
    go(mixed, tmp_path / "out")
    write_json(mixed, [entry("x", "ai2d/a.jpg")], name="more.json")
    with pytest.raises(WorkspaceError, match=r"was made from cambrian737k.json, not from more"):
        go(mixed, tmp_path / "out", json_path=mixed / "more.json")
    (mixed / "more.json").unlink()
    write_json(mixed, [entry("x", "ai2d/a.jpg")])
    with pytest.raises(WorkspaceError, match=r"cambrian737k.json has changed since"):
        go(mixed, tmp_path / "out")


def test_retried_entries_share_shards_of_the_first_size(tmp_path):
    entries = write_plain_set(tmp_path / "data", 40)
    entries += [entry(f"vg/{i}", f"vg/{i}.jpg") for i in range(6)]
    write_json(tmp_path / "data", entries)
    assert go(tmp_path / "data", tmp_path / "out").num_shards == 10
    write_tar(tmp_path / "data" / "vg.tar", {f"vg/{i}.jpg": jpeg(i) for i in range(6)})
    assert go(tmp_path / "data", tmp_path / "out", retry=True).num_shards == 12
