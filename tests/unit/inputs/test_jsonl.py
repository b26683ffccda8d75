"""Lines of a JSONL file become the samples of shards made of them; a bad one costs itself."""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile

import pytest
from megatron.energon import WorkerConfig
from sample_chats import picture

import dct_vl.inputs.jsonl
from data_prep.schema import SchemaError
from dct_vl.inputs.data_sets import load_sets, num_samples
from dct_vl.inputs.jsonl import indexed, num_entries, read_chats
from dct_vl.inputs.rejects import file_of
from dct_vl.inputs.samples import read_record
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.inputs.shard_reader import read_split

PICTURE = picture(56, 84, seed=1)
LLAVA = {
    "id": 7,
    "image": "pictures/a b.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A <video>."},
    ],
}


def messages(image, **entry):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "A <video>."}]
    return {"messages": said, **entry}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a b.png").write_bytes(PICTURE)
    return tmp_path


def write(path, *lines):
    path.write_bytes(
        b"\n".join(s if isinstance(s, bytes) else json.dumps(s).encode() for s in lines)
    )
    return path


def test_every_form_of_an_entry_is_the_same_sample(folder):
    file = folder / "pictures" / "a b.png"
    marked = {
        "messages": [
            {"role": "user", "content": "<image>\nWhat?"},
            {"role": "assistant", "content": "A <video>."},
        ]
    }
    path = write(
        folder / "x.jsonl",
        LLAVA,
        {**marked, "images": ["pictures/a b.png"]},
        messages("pictures/a b.png"),
        messages(str(file)),
        messages(file.as_uri()),
        messages("data:image/png;base64," + base64.b64encode(PICTURE).decode()),
        {
            **LLAVA,
            "conversations": [{"from": "human", "value": "What?"}, LLAVA["conversations"][1]],
        },
    )
    chats = list(read_chats(path))
    assert [chat.fault for chat in chats] == [""] * 7
    assert [chat.__key__ for chat in chats] == [str(n) for n in range(7)]
    assert {chat.images for chat in chats} == {(PICTURE,)}
    assert {read_record(chat).turns for chat in chats} == {read_record(chats[0]).turns}
    assert [turn.text for turn in read_record(chats[0]).turns] == ["<image>\nWhat?", "A <video>."]
    assert (read_record(chats[0]).id, file_of(chats[0])) == ("7", str(path))


def test_a_bad_line_costs_itself_and_is_named(folder):
    good = json.dumps(LLAVA).encode()
    path = write(
        folder / "x.jsonl",
        b"\xef\xbb\xbf" + good,
        b"",
        b"{",
        good.replace(b"7", b"NaN"),
        good.replace(b"What", b"\\ud800"),
        b"  ",
        messages("http://h/a.png"),
        messages("none.png"),
        {"messages": [{"role": "user", "content": "a"}]},
        {**LLAVA, "conversations": LLAVA["conversations"][:1]},
        good,
    )
    chats = list(read_chats(path))
    assert num_entries(path) == len(chats) == 9
    assert [bool(chat.fault) for chat in chats] == [False, *[True] * 7, False]
    for chat, line, said in zip(
        chats[1:8],
        (3, 4, 5, 7, 8, 9, 10),
        ("no JSON", "no JSON", "", "remote: ", "missing_image: ", "no_answer: ", "roles_do_not"),
        strict=True,
    ):
        assert chat.fault.startswith(f"line {line} of x.jsonl: ")
        assert said in chat.fault
        with pytest.raises(SchemaError, match=f"line {line} of"):
            read_record(chat)
    assert read_record(chats[0]).turns == read_record(chats[8]).turns


def test_what_turns_hold_beside_their_text_is_not_lost(folder):
    question, answer = LLAVA["conversations"]
    lines = (
        {**LLAVA, "conversations": [question | {"image": "b.png"}, answer]},
        {**LLAVA, "conversations": [question, answer | {"loss": False}]},
    )
    faults = [chat.fault for chat in read_chats(write(folder / "x.jsonl", *lines))]
    assert faults[0].startswith("line 1 of x.jsonl: unknown_key: turn 0 has image")
    assert faults[1].startswith("line 2 of x.jsonl: unknown_key: turn 1 has loss")


def test_the_index_is_that_of_this_very_file(folder):
    path = write(folder / "x.jsonl", LLAVA, LLAVA)
    assert num_entries(path) == 2
    index = folder / "x.jsonl.idx"
    kept = index.stat().st_mtime_ns
    assert keys_by_split(path) == {"train": {"0", "1"}}
    assert index.stat().st_mtime_ns == kept
    write(path, LLAVA, {**LLAVA, "id": 8})  # as many bytes
    os.utime(path, ns=(kept + 10**9, kept + 10**9))
    os.utime(index, ns=(kept, kept))
    assert [read_record(chat).id for chat in read_chats(path)] == ["7", "8"]
    write(path, LLAVA)
    assert num_samples(str(path), "train") == 1


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(folder, tmp_path, monkeypatch):
    path = write(folder / "x.jsonl", LLAVA)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    durably = dct_vl.inputs.jsonl.write_durably

    def refuse(file, data):
        if file.parent == folder:
            raise OSError(30, "Read-only file system")
        durably(file, data)

    monkeypatch.setattr(dct_vl.inputs.jsonl, "write_durably", refuse)
    for _ in range(2):
        (chat,) = read_chats(path)
        assert (chat.fault, chat.images) == ("", (PICTURE,))
    assert (tmp_path / "elsewhere") in indexed(path).parents
    assert not (folder / "x.jsonl.idx").exists()


def test_energon_reads_it_in_any_order_and_as_a_split(folder):
    path = write(folder / "x.jsonl", *({**LLAVA, "id": n} for n in range(20)))
    held = list(read_split(str(path), "train"))
    assert [one.record.id for one in held] == [str(n) for n in range(20)]
    assert held[3].images == (PICTURE,)
    config = WorkerConfig(rank=1, world_size=2, num_workers=0)
    (one,) = load_sets(str(path), "train", config, training=True).datasets
    assert len(one.dataset) == 20


@pytest.mark.parametrize(
    ("media", "said"),
    [
        ("pictures/small.png", "too_small: pictures/small.png: 20x20 has a side under 28"),
        ("data:image/png;base64," + base64.b64encode(picture(20, 20, 1)).decode(), "too_small: "),
        ("pictures/none.png", "missing_image: pictures/none.png is no file below"),
        ("../outside.png", "unsafe_path: image '../outside.png' leads out of"),
        ("{above}/outside.png", "unsafe_path: image .* is an absolute path outside"),
        ("pictures", "not_a_regular_file: "),
        ("pictures/junk.png", "not_an_image: pictures/junk.png: "),
        ("pictures/empty.png", "empty_file: pictures/empty.png"),
    ],
)
def test_images_are_rejected_as_convert_rejects_them(folder, media, said):
    folder = folder.rename(folder.parent / f"{folder.name}_in") / "pictures"
    (folder / "small.png").write_bytes(picture(20, 20, seed=1))
    (folder / "junk.png").write_bytes(b"junk")
    (folder / "empty.png").touch()
    above = folder.parent.parent
    (above / "outside.png").write_bytes(PICTURE)
    path = write(folder.parent / "x.jsonl", messages(media.format(above=above)))
    (chat,) = read_chats(path)
    assert re.match(f"line 1 of x.jsonl: {said}", chat.fault), chat.fault


@pytest.mark.parametrize(
    ("video", "said"),
    [("none.mp4", "missing_video: none.mp4 "), ("junk.mp4", "corrupt_video: junk.mp4: ")],
)
def test_videos_are_rejected_as_such(folder, video, said):
    (folder / "junk.mp4").write_bytes(b"junk")
    turns = [{"from": "human", "value": "<video>What?"}, LLAVA["conversations"][1]]
    (chat,) = read_chats(write(folder / "x.jsonl", {"video": video, "conversations": turns}))
    assert chat.fault.startswith(f"line 1 of x.jsonl: {said}"), chat.fault
