"""Formats are recognised by what a source holds, and shown by a dry run."""

import json

import pytest
from raw_set import conversation, entry, jpeg, write_json, write_plain_set
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.sources import FORMATS, SourceError, open_source

ASKED = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]


def convert(*words, exit_code=0):
    done = CliRunner().invoke(app, ["convert", *map(str, words)], env={"COLUMNS": "300"})
    assert done.exit_code == exit_code, done.output
    return done.output


def recognised(folder, file=None):
    return open_source(folder, file, None).format


@pytest.mark.parametrize(
    ("first", "name"),
    [
        ({"conversations": conversation()}, "llava"),
        ({"conversations": ASKED}, "messages"),
        ({"messages": ASKED}, "messages"),
        ({"messages": conversation()}, "messages"),
    ],
)
def test_json_is_recognised_by_its_entries(tmp_path, first, name):
    write_json(tmp_path, ["no entry", first], "set.json")
    assert recognised(tmp_path) == name
    (tmp_path / "lines.jsonl").write_text(json.dumps(first))
    assert recognised(tmp_path, tmp_path / "lines.jsonl") == name


@pytest.mark.parametrize(
    ("first", "shown"),
    [
        ({"prompt": "x", "output": "y"}, "has the keys 'prompt', 'output', of no format"),
        ({}, "has the keys none"),
        ([1], "begins with a list"),
    ],
)
def test_what_is_not_known_is_shown(tmp_path, first, shown):
    write_json(tmp_path, [first], "set.json")
    with pytest.raises(SourceError, match=shown) as caught:
        recognised(tmp_path)
    assert all(f"{name}: {one.looks}" in str(caught.value) for name, one in FORMATS.items())


def test_folders_and_files_that_are_not_known(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(SourceError, match=r"holds notes\.md: no format that is known"):
        recognised(tmp_path)
    with pytest.raises(SourceError, match=r"notes\.md is a file of no format"):
        recognised(tmp_path, tmp_path / "notes.md")
    assert "expected one of llava, messages" in convert(
        tmp_path, "--output-dir", tmp_path / "W", "--format", "xml", exit_code=1
    )


def test_the_format_is_printed_and_may_be_given(tmp_path):
    write_plain_set(tmp_path / "data", 3)
    said = convert(tmp_path / "data", "--output-dir", tmp_path / "W", "--workers", 1)
    assert "format: llava (cambrian737k.json)" in said
    file = tmp_path / "data" / "cambrian737k.json"
    said = convert(file, "--output-dir", tmp_path / "V", "--workers", 1, "--format", "llava")
    assert "format: llava" not in said
    first = "pretrain-000000.tar"
    assert (tmp_path / "W" / first).read_bytes() == (tmp_path / "V" / first).read_bytes()


def test_media_may_lie_elsewhere(tmp_path):
    write_plain_set(tmp_path / "data", 2)
    (tmp_path / "data" / "cambrian737k.json").rename(tmp_path / "set.json")
    words = (tmp_path / "set.json", "--output-dir", tmp_path / "W", "--workers", 1)
    assert "2 of 2" in convert(*words, "--media-dir", tmp_path / "data")


def test_a_dry_run_shows_what_the_model_will_see(tmp_path):
    words = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "half").mkdir()
    for folder in (tmp_path, tmp_path / "half"):
        (folder / "tokenizer_config.json").write_text('{"eos_token": null}')
    entries = write_plain_set(tmp_path / "data", 4)
    entries[0]["image"] = "ai2d/images/gone.jpg"
    entries[3]["conversations"] = conversation("How many?\n<image>", "Two.")
    write_json(tmp_path / "data", [entry("text"), *entries])
    words_of_command = (
        *(
            tmp_path / "data",
            "--output-dir",
            tmp_path / "W",
            "--check",
            "--tokenizer-path",
            tmp_path,
        ),
    )
    said = convert(*words_of_command)
    assert not (tmp_path / "W").exists()
    assert "3 of 5 entries would be kept" in said
    assert "rejected, text_only: 1 (entry 0, line 1: the entry has no image" in said
    assert "rejected, missing_image: 1 (entry 1, line 1: ai2d/images/gone.jpg" in said
    assert "  user: How many?\n    <image>\n  assistant: Two.\n" in said
    # 64x48 is brought to 56x56: four tokens of 28x28
    assert "image ai2d/images/3.jpg: 64x48, as it is; 4 visual tokens (pixel)" in said
    assert "text: 5 tokens, without those of the chat template" in said, "What ? A dog ."
    assert "text: 5 tokens" in said.rpartition("entry 4")[2], "How many ? Two ."
    assert "has no tokenizer.json that can be read" in convert(
        *words_of_command[:-1], tmp_path / "half", exit_code=1
    )


def test_a_dry_run_goes_past_broken_images(tmp_path):
    files = {"a.jpg": jpeg(1)[:-200], "b.jpg": jpeg(2)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("A dog.")
    said = convert(tmp_path, "--output-dir", tmp_path / "W", "--check", "--caption-prompt", "What?")
    assert "format: folder" in said
    assert "rejected, truncated_image" in said
    assert "user: <image>\n    What?" in said
    assert "expected at least" in convert(
        tmp_path, "--output-dir", tmp_path / "W", "--shard-size", 0, exit_code=1
    )


@pytest.mark.parametrize(("name", "text"), [("a.json", " [ ]\n"), ("a.jsonl", "\n\n")])
@pytest.mark.parametrize("given", [None, "llava"])
def test_an_empty_file_holds_no_entry(tmp_path, name, text, given):
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=f"{name} holds no entry"):
        open_source(tmp_path, None, given)


@pytest.mark.parametrize("media", ["a.mkv", "a.jpg"])
def test_a_list_of_entries_may_be_named_like_its_media(tmp_path, media):
    (tmp_path / media).write_bytes(jpeg(1))
    (tmp_path / "b.jpg").write_bytes(jpeg(2))
    write_json(tmp_path, conversation(), "b.json")
    write_json(tmp_path, {"caption": "A dog."}, "a.json")
    assert recognised(tmp_path) == "folder"
    write_json(tmp_path, [entry("1", media)], "a.json")
    found = open_source(tmp_path, None, None)
    assert (found.format, found.name) == ("llava", "a.json")


def test_what_conversions_write_is_no_file_of_entries(tmp_path):
    write_json(tmp_path, [entry("1", "1.jpg")], "set.json")
    for name in ("stats.json", "settings.json", "quarantine.jsonl"):
        write_json(tmp_path, {"id": "x"}, name)
    assert open_source(tmp_path, None, None).name == "set.json"
    write_json(tmp_path, [entry("1", "1.jpg")], "stats.json")
    with pytest.raises(SourceError, match=r"2 JSON files in .* \(set\.json, stats\.json\)"):
        recognised(tmp_path)


def test_the_filtered_entries_beside_shards_are_no_source(tmp_path):
    write_plain_set(tmp_path / "data", 1)
    convert(tmp_path / "data", "--output-dir", tmp_path / "W", "--workers", 1)
    assert (tmp_path / "W" / "cambrian737k_filtered.json").is_file()
    assert recognised(tmp_path / "W") == "webdataset"
    (tmp_path / "W" / "manifest.json").unlink()
    assert recognised(tmp_path / "W") == "llava"
