"""Parquet files and saved datasets: columns, cells and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_set import conversation, encoded, jpeg, output_bytes, picture, read_shards
from rich.console import Console

from data_prep.executor import InProcessExecutor, ProcessExecutor
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.quarantine import Reason, Rejected, reject_line
from data_prep.run import Job, run
from data_prep.sources import (
    Entry,
    Inline,
    Media,
    ReadOptions,
    Row,
    SourceError,
    describe,
    open_source,
    tables,
)
from data_prep.sources.formats import read_entries
from data_prep.sources.table_cells import CellReader


def write(folder, rows, name="a.parquet", **options):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name, **options)
    return folder


def write_arrow(folder, rows, num_batches=2):
    """What datasets' save_to_disk leaves, as far as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(folder / "data-0.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=-(-len(rows) // num_batches))
    state = {"_data_files": [{"filename": "data-0.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def rows(number, **changes):
    return [
        {"id": i, "image": {"bytes": jpeg(i), "path": None}, "conversations": conversation()}
        | {key: change(i) for key, change in changes.items()}
        for i in range(number)
    ]


def entries(folder, file=None, *, in_order=True, exact_sizes=True, **options):
    source = open_source(
        folder, file, None, ReadOptions(**options), in_order=in_order, exact_sizes=exact_sizes
    )
    return list(read_entries(source, None))


def go(folder, output, engine=None, **options):
    job = Job(
        data_dir=folder, output_dir=output, json=None, options=Options(**options), format=None
    )
    return run(job, engine or InProcessExecutor(), Reporter(Console(quiet=True)))


@pytest.mark.parametrize("make", [write, write_arrow])
def test_cells_are_read_where_they_lie(tmp_path, make):
    folder = make(tmp_path / "set", rows(9))
    found = entries(folder)
    assert [one.index for one in found] == list(range(9))
    held = found[4].images[0].held
    assert isinstance(held, Row)
    assert (held.number, held.size) == (4, len(jpeg(4)))
    reader = CellReader(folder)
    for number in (4, 8, 0, 3):
        assert reader.read(held.file, number, held.column) == jpeg(number)
    with pytest.raises(LookupError, match="row 9 of 9"):
        reader.read(held.file, 9, held.column)


@pytest.mark.parametrize("make", [write, write_arrow])
@pytest.mark.parametrize("seed", [None, 3])
def test_bytes_do_not_depend_on_workers(tmp_path, make, seed):
    folder = make(tmp_path / "set", rows(9))
    assert go(folder, tmp_path / "one", shuffle_seed=seed).kept == 9
    go(folder, tmp_path / "two", engine=ProcessExecutor(2), shuffle_seed=seed)
    assert output_bytes(tmp_path / "one") == output_bytes(tmp_path / "two")
    stored = {key: parts["jpg"] for key, parts in read_shards(tmp_path / "one").items()}
    assert stored == {f"{i:09d}-{i}": jpeg(i) for i in range(9)}


def test_rows_out_of_order_and_large_groups_are_spooled(tmp_path, monkeypatch):
    folder = write(tmp_path / "set", rows(3))
    assert isinstance(entries(folder, in_order=False)[0].images[0].held, Inline)
    monkeypatch.setattr(tables, "MAX_GROUP_BYTES", 100)
    assert isinstance(entries(folder)[0].images[0].held, Inline)
    saved = write_arrow(tmp_path / "saved", rows(3))
    assert isinstance(entries(saved, in_order=False)[0].images[0].held, Row)


@pytest.mark.parametrize(
    ("cell", "paths"),
    [
        (lambda i: jpeg(i), ["a.parquet#0"]),
        (lambda i: {"bytes": jpeg(i), "path": "x.jpg"}, ["x.jpg"]),
        (lambda i: {"bytes": None, "path": "x.jpg"}, ["x.jpg"]),
        (lambda i: "x.jpg", ["x.jpg"]),
        (lambda i: [jpeg(i), jpeg(9)], ["a.parquet#0", "a.parquet#0"]),
        (lambda i: [{"bytes": jpeg(i), "path": "x.jpg"}], ["x.jpg"]),
        (lambda i: None, []),
    ],
)
def test_images_in_every_form(tmp_path, cell, paths):
    # a second row gives the column a type where the first has none
    made = rows(2, image=cell)
    folder = write(tmp_path / "set", made)
    first = entries(folder)[0]
    assert [one.path for one in first.images] == paths
    if paths == ["a.parquet#0", "a.parquet#0"]:
        reader = CellReader(folder)
        held = [one.held for one in first.images]
        assert [reader.read(h.file, h.number, h.column) for h in held] == [jpeg(0), jpeg(9)]


TURNS = conversation("What?")
ASKED = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"conversations": TURNS}, {}),
        ({"messages": ASKED}, {}),
        ({"talk": ASKED}, {"conversations_column": "talk"}),
        ({"conversations": json.dumps(TURNS)}, {}),
        ({"messages": {"role": ["user", "assistant"], "content": ["What?", "A dog."]}}, {}),
        ({"texts": [{"user": "What?", "assistant": "A dog.", "source": "x"}]}, {}),
        ({"question": "What?", "answer": "A dog."}, {}),
        ({"q": "What?", "a": "A dog."}, {"question_column": "q", "answer_column": "a"}),
        ({"caption": "A dog."}, {"caption_prompt": "What?"}),
        ({"words": "A dog."}, {"text_column": "words", "caption_prompt": "What?"}),
    ],
)
def test_texts_in_every_form(tmp_path, columns, options):
    row = {"id": "x", "image": {"bytes": jpeg(0), "path": None}, **columns}
    (entry,) = entries(write(tmp_path / "set", [row]), **options)
    assert isinstance(entry, Entry), entry
    assert entry.conversations == TURNS
    assert entry.id == "x"


def test_columns_by_name(tmp_path):
    made = rows(1, left=lambda i: jpeg(1), right=lambda i: jpeg(2), depth=lambda i: b"123")
    folder = write(tmp_path / "set", made)
    with pytest.raises(SourceError, match="in the column left; --image-column or"):
        entries(folder)
    found = entries(folder, image_column=("left", "right"), ignore=("image", "depth"))
    assert [one.held.column for one in found[0].images] == ["left/0", "right/0"]
    with pytest.raises(SourceError, match=r"--image-column is 'up'; .* has the columns id, image"):
        entries(folder, image_column=("up",))


def test_keys_of_turns_are_left_out_by_name_too(tmp_path):
    turns = [turn | {"weight": 0, "image": None} for turn in conversation()]
    folder = write(tmp_path / "set", rows(1, conversations=lambda i: turns))
    (refusal,) = entries(folder)
    assert refusal.reason == "unknown_key"
    assert refusal.detail.startswith("turn 0 has weight: 0")
    (entry,) = entries(folder, ignore=("weight",))
    assert len(entry.images) == 1


def test_columns_that_say_nothing(tmp_path):
    folder = write(tmp_path / "set", [{"image": jpeg(0), "words": "A dog."}])
    with pytest.raises(SourceError, match="columns image, words; say which hold the text"):
        entries(folder)


def test_a_path_in_an_unknown_column_is_not_lost(tmp_path):
    made = [{"photo": "a.jpg", "question": "What?", "answer": "A dog."}]
    (refusal,) = entries(write(tmp_path / "set", made))
    assert (refusal.reason, "photo" in refusal.detail) == ("unknown_key", True)


def test_splits_are_not_mixed(tmp_path):
    folder = write(tmp_path / "set" / "data", rows(2), "train-00000-of-00001.parquet")
    assert len(entries(tmp_path / "set")) == 2
    write(folder, rows(3), "test-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"several splits \(test, train\)"):
        entries(tmp_path / "set")
    assert len(entries(folder, folder / "test-00000-of-00001.parquet")) == 3


def test_several_files_follow_each_other(tmp_path):
    write(tmp_path / "set", rows(2), "train-00000-of-00002.parquet")
    write(tmp_path / "set", rows(3), "train-00001-of-00002.parquet")
    assert [one.index for one in entries(tmp_path / "set")] == list(range(5))
    assert go(tmp_path / "set", tmp_path / "out").kept == 5


def test_damaged_files_and_images(tmp_path):
    folder = write(tmp_path / "set", rows(3, image=lambda i: jpeg(i) if i else b"no image"))
    summary = go(folder, tmp_path / "out")
    assert (summary.kept, summary.rejected) == (2, {"not_an_image": 1})
    (line,) = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").open())
    assert (line["file"], line["image"]) == ("a.parquet", "a.parquet#0")
    (folder / "a.parquet").write_bytes(encoded(picture(1)))
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read as Parquet"):
        entries(folder)


def test_splits_of_a_saved_dict_are_folders(tmp_path):
    write_arrow(tmp_path / "set" / "train", rows(2))
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    with pytest.raises(SourceError, match=r"several splits \(train\); give the folder of one"):
        entries(tmp_path / "set")
    assert len(entries(tmp_path / "set" / "train")) == 2


@pytest.mark.parametrize("cell", [jpeg, lambda i: {"bytes": jpeg(i), "path": f"{i}.jpg"}])
def test_bytes_are_not_read_to_be_planned_where_each_row_has_some(tmp_path, cell):
    folder = write(tmp_path / "set", rows(4, image=cell), row_group_size=2)
    exact, mean = (entries(folder, exact_sizes=value) for value in (True, False))
    sizes = [[one.images[0].held.size for one in found] for found in (exact, mean)]
    assert sizes[0] == [len(jpeg(i)) for i in range(4)]
    # of a group of rows, page headers with bounds of such small images included
    assert sizes[1][0] == sizes[1][1]
    assert max(sizes[0]) / 2 < sizes[1][0] < 4 * max(sizes[0])
    places = [[(one.index, one.images[0].path) for one in found] for found in (exact, mean)]
    assert places[0] == places[1]
    missing = write(tmp_path / "some", rows(4, image=lambda i: cell(i) if i else None))
    assert [len(one.images) for one in entries(missing, exact_sizes=False)] == [0, 1, 1, 1]
    assert go(folder, tmp_path / "out").kept == 4
    # by exact sizes two of these never fit
    assert go(folder, tmp_path / "cut", shard_bytes=len(jpeg(0)) + 1).num_shards == 4


def test_the_quarantine_names_media_by_their_paths(tmp_path):
    folder = write(tmp_path / "set", rows(2, conversations=lambda i: []))
    assert go(folder, tmp_path / "W").kept == 0
    lines = [json.loads(line) for line in (tmp_path / "W" / "quarantine.jsonl").open()]
    assert [line["image"] for line in lines] == ["a.parquet#0", "a.parquet#1"]
    one = Media(kind="image", path="1.jpg")
    line = reject_line(0, {"image": [one, "2.jpg"], "video": one}, Rejected(Reason.REMOTE, "x"))
    found = json.loads(line)
    assert (found["image"], found["video"]) == (["1.jpg", "2.jpg"], "1.jpg")


def test_an_answer_that_is_no_text_is_refused_unless_it_is_named(tmp_path):
    asked = [
        {"image": jpeg(i), "question": "Which?", "choices": ["a", "b"], "answer": i, "hint": "x"}
        for i in range(2)
    ]
    folder = write(tmp_path / "set", asked)
    with pytest.raises(SourceError, match="column answer of int64; expected text: --answer-column"):
        go(folder, tmp_path / "W")
    assert not (tmp_path / "W").exists()
    named = open_source(folder, None, None, ReadOptions(answer_column="answer"))
    said = "columns used: image, question, answer; left out: choices, hint"
    assert list(describe(named)) == [said]
    assert [one.conversations[1]["value"] for one in read_entries(named, None)] == [0, 1]
    other = write(tmp_path / "other", [{"image": jpeg(1), "caption": ["one", "two"]}])
    with pytest.raises(SourceError, match=r"column caption of list.*--text-column"):
        entries(other)
    both = write(tmp_path / "both", [asked[0] | {"caption": "A dog."}])
    assert entries(both, ignore=("answer",))[0].conversations[1]["value"] == "A dog."


def test_used_columns_are_printed_once(tmp_path, capsys):
    write(tmp_path / "set", rows(2, split=lambda i: "x"))
    job = Job(
        data_dir=tmp_path / "set",
        output_dir=tmp_path / "W",
        json=None,
        options=Options(),
        format=None,
    )
    run(job, InProcessExecutor(), Reporter(Console(width=200)))
    said = "columns used: id, image, conversations; left out: split"
    assert capsys.readouterr().out.count(said) == 1


@pytest.mark.parametrize("make", [write, write_arrow])
def test_a_table_without_rows_holds_no_entry(tmp_path, make):
    make(tmp_path / "set", rows(1))
    for path in (tmp_path / "set").iterdir():
        if path.suffix == ".parquet":
            pq.write_table(pq.read_table(path).slice(0, 0), path)
        elif path.suffix == ".arrow":
            with pa.ipc.new_stream(path, pa.schema([("image", pa.binary())])):
                pass
    with pytest.raises(SourceError, match="set holds no entry"):
        go(tmp_path / "set", tmp_path / "W")
