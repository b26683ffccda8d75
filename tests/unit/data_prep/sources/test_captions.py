"""Images with texts beside them, in folders and in tars."""

import json
import zipfile

import pytest
from raw_set import conversation, jpeg, write_tar

from data_prep.locate import Locator
from data_prep.sources import Entry, ReadOptions, open_source
from data_prep.sources.formats import read_entries
from data_prep.tar_index import TarIndex


def entries(folder, name=None, **options):
    source = open_source(folder, None, name, ReadOptions(**options))
    tars = list(source.tars)
    with TarIndex(folder.parent / "index") as index:
        index.update(tars)
        return source.format, list(read_entries(source, Locator(folder, tars, index)))


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
    record = json.dumps({"conversations": turns, "images": ["x"] * 11}).encode()
    write_tar(folder / "0.tar", {name: jpeg(1) for name in names} | {"1.json": record})
    _, (entry,) = entries(folder)
    assert [one.path for one in entry.images] == [f"0/1.{number}.jpg" for number in range(11)]


def test_tars_that_were_joined_or_are_damaged_are_read_on(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        parts = {f"{number}.jpg": jpeg(number), f"{number}.txt": b"A dog."}
        write_tar(tmp_path / f"{number}.tar", parts)
    joined = b"".join((tmp_path / f"{number}.tar").read_bytes() for number in range(3))
    (folder / "0.tar").write_bytes(joined)
    assert len(captions(entries(folder)[1])) == 3
    second = joined.index(b"1.txt\0")
    (folder / "0.tar").write_bytes(joined[:second] + b"\xff" + joined[second + 1 :])
    _, found = entries(folder)
    assert [one.index for one in found] == [0, 1, 2]
    assert reasons(found) == {"1": "no_answer"}


def test_a_zip_of_samples_is_read_where_it_is_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with zipfile.ZipFile(folder / "0.zip", "w") as archive:
        archive.writestr("a/1.jpg", jpeg(1))
        archive.writestr("a/1.txt", "A dog.")
    assert captions(entries(folder, "webdataset")[1]) == {"a/1": "A dog."}


def test_videos_beside_their_texts(tmp_path):
    files = {"v.mp4": b"x", "v.txt": "A run.", "i.jpg": jpeg(1), "i.txt": "A dog."}
    name, found = entries(write_files(tmp_path / "mixed", files))
    assert name == "folder"
    assert captions(found) == {"i.jpg": "A dog.", "v.mp4": "A run."}
    assert [one.path for one in found[1].videos] == ["v.mp4"]
    assert found[1].conversations[0]["value"].startswith("<video>\n")
    assert not found[1].images
    only = {"v.MP4": b"x", "v.txt": "A run.", "w.webm": b"x"}
    name, found = entries(write_files(tmp_path / "videos", only))
    assert (name, captions(found[:1])) == ("folder", {"v.MP4": "A run."})
    assert found[1].raw == {"id": "w.webm", "video": ["w.webm"]}


def test_a_webdataset_of_videos(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_tar(folder / "0.tar", {"1.mp4": b"x", "1.txt": b"A run."})
    name, found = entries(folder)
    assert (name, captions(found)) == ("webdataset", {"1": "A run."})
    assert [one.path for one in found[0].videos] == ["0/1.mp4"]


@pytest.mark.parametrize("name", ["1.txt", "a/2.json"])
def test_an_edited_caption_is_another_input(tmp_path, name):
    files = {"1.jpg": jpeg(1), "1.txt": "A dog.", "a/2.png": jpeg(2), "a/2.json": "{}"}
    folder = write_files(tmp_path / "set", files)

    def inputs():
        return open_source(folder, None, "folder").inputs()

    before = inputs()
    write_files(folder, {"notes.txt": "of no image"})
    assert inputs() == before
    (folder / name).write_text("A cat, not a dog.")
    assert inputs() != before
