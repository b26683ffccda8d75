"""Images with texts beside them, in folders and in tars."""

import json

import pytest
from raw_set import conversation, jpeg, write_tar

from data_prep.sources import Entry, ReadOptions, open_source
from data_prep.sources.formats import read_entries


def entries(folder, **options):
    source = open_source(folder, None, None, ReadOptions(**options))
    return source.format, list(read_entries(source))


def captions(found):
    assert all(isinstance(one, Entry) for one in found), found
    return {one.id: one.conversations[1]["value"] for one in found}


def reasons(found):
    return {one.raw["id"]: one.reason for one in found if not isinstance(one, Entry)}


def write_files(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_a_folder_of_images(tmp_path):
    folder = write_files(
        tmp_path / "set",
        {
            "b.jpg": jpeg(1),
            "b.txt": "\ufeffA dog.\n",
            "a/c.PNG": jpeg(2),
            "a/c.json": json.dumps({"caption": "A cat."}),
            "a/d.jpg": jpeg(3),
            "a/d.json": json.dumps({"conversations": conversation("Who?", "Me.")}),
        },
    )
    name, found = entries(folder)
    assert name == "folder"
    assert captions(found) == {"a/c.PNG": "A cat.", "a/d.jpg": "Me.", "b.jpg": "A dog."}
    assert found[0].conversations[0]["value"] == "<image>\nDescribe this image."
    _, found = entries(folder, caption_prompt="Say what.")
    assert found[0].conversations[0]["value"] == "<image>\nSay what."
    assert found[2].conversations[0]["value"] == "Who?"


def test_images_of_which_nothing_is_said(tmp_path):
    files = {"a.jpg": jpeg(1), "a.txt": "x", "b.jpg": jpeg(1), "c.jpg": jpeg(1), "c.json": "{}"}
    files |= {"d.jpg": jpeg(1), "d.json": "{", "e.jpg": jpeg(1), "e.txt": b"\xff\xfe"}
    _, found = entries(write_files(tmp_path / "set", files))
    assert [one.index for one in found] == list(range(5))
    assert reasons(found) == {
        "b.jpg": "no_answer",
        "c.jpg": "no_answer",
        "d.jpg": "malformed_entry",
        "e.jpg": "malformed_entry",
    }


@pytest.mark.parametrize(
    ("name", "mode"), [("0.tar", "w"), ("0.tar.gz", "w:gz"), ("0.tgz", "w:gz")]
)
def test_a_webdataset(tmp_path, name, mode):
    described = json.dumps({"url": "https://a.b/c.jpg", "caption": "not this", "key": "1"})
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(
        folder / name,
        {
            "./x/1.jpg": jpeg(1),
            "./x/1.txt": b"A dog.",
            "./x/1.json": described.encode(),
            "x/2.json": json.dumps({"caption": "A cat."}).encode(),
            "x/2.png": jpeg(2),
            "x/3.jpg": jpeg(3),
            "x/3.json": json.dumps({"conversations": conversation("Who?", "Me.")}).encode(),
        },
        mode=mode,
    )
    (folder / "0_stats.json").write_text("{}")
    found_format, found = entries(folder)
    assert found_format == "webdataset"
    assert captions(found) == {"x/1": "A dog.", "x/2": "A cat.", "x/3": "Me."}
    assert [one.images[0].path for one in found] == ["0/x/1.jpg", "0/x/2.png", "0/x/3.jpg"]


def test_samples_of_tars_that_cannot_be_stored(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(
        folder / "0.tar",
        {
            "1.jpg": jpeg(1),
            "1.txt": b"A dog.",
            "2.jpg": jpeg(1),
            "3.txt": b"words",
            "4.jpg": jpeg(1),
            "4.seg.png": jpeg(1),
            "4.txt": b"two",
            "5.jpg": jpeg(1),
            "5.npy": b"12",
            "5.txt": b"x",
        },
    )
    _, found = entries(folder)
    assert len(found) == 5
    assert reasons(found) == {
        "2": "no_answer",
        "3": "malformed_entry",
        "4": "malformed_entry",
        "5": "unknown_key",
    }


def test_numbered_images_of_a_conversation_keep_their_order(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    turns = conversation("<image>" * 11)
    names = sorted(f"1.{number}.jpg" for number in range(11))
    record = json.dumps({"conversations": turns, "image": ["x"] * 11}).encode()
    write_tar(folder / "0.tar", {name: jpeg(1) for name in names} | {"1.json": record})
    _, (entry,) = entries(folder)
    assert [one.path for one in entry.images] == [f"0/1.{number}.jpg" for number in range(11)]
