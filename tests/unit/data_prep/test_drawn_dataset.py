"""The drawn collection on disk: layout, formats, planted defects, determinism, command."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import typer
from PIL import Image, ImageOps
from typer.testing import CliRunner

from data_prep.cli import draw
from data_prep.drawn import DrawnSummary, write_drawn_dataset
from data_prep.drawn.drawing import COLORS, POSITIONS, cell_centre
from data_prep.drawn.entries import draw_entry
from data_prep.drawn.files import encode

NUM = 300


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, DrawnSummary]:
    folder = tmp_path_factory.mktemp("drawn")
    return folder, write_drawn_dataset(folder, num_entries=NUM, seed=3)


def load(folder: Path) -> tuple[list[dict], dict[str, bytes]]:
    files = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name.startswith(f"{path.stem}/"), "source folder inside its own tar"
                stream = tar.extractfile(member)
                assert stream is not None
                files[member.name] = stream.read()
    return json.loads((folder / "cambrian737k.json").read_text()), files


def images(record: dict) -> list[str]:
    value = record.get("image", [])
    return [value] if isinstance(value, str) else value


def decodes(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except OSError:
        return False
    return True


def test_summary_equals_what_lies_on_disk(drawn):
    folder, summary = drawn
    records, files = load(folder)
    usable = [
        record
        for record in records
        if all(path in files and decodes(files[path]) for path in images(record))
    ]
    assert summary.num_entries == len(records) == NUM
    assert summary.num_usable == len(usable) == NUM - 3 - 1
    assert summary.num_turns == sum(len(record["conversations"]) // 2 for record in records)
    assert sum(summary.by_source.values()) == len(files)
    assert sum(summary.by_kind.values()) == NUM
    assert sum(summary.by_format.values()) == NUM - summary.by_kind["text"]
    unusable = {record["id"] for record in records} - {record["id"] for record in usable}
    assert unusable == {*summary.planted["missing"], *summary.planted["truncated"]}


def test_every_kind_source_and_format_occurs(drawn):
    folder, summary = drawn
    assert set(summary.by_kind) == {"scene", "count", "chart", "words", "dots", "pair", "text"}
    assert {path.name for path in folder.glob("*.tar")} == {
        "shapes.tar", "charts.tar", "words.tar", "positions.tar", "pairs.tar",
    }  # fmt: skip
    _, files = load(folder)
    modes = {(name[-4:], Image.open(io.BytesIO(data)).mode) for name, data in files.items()}
    assert modes == {
        (".jpg", "RGB"), (".png", "RGB"), (".png", "RGBA"), (".png", "P"), (".png", "I;16"),
    }  # fmt: skip
    assert summary.by_format["jpeg"] > NUM / 2


def test_conversations_have_llava_layout(drawn):
    records, _ = load(drawn[0])
    starts, ends, turns = 0, 0, set()
    for record in records:
        talk = record["conversations"]
        assert [message["from"] for message in talk] == ["human", "gpt"] * (len(talk) // 2)
        placeholders = [message["value"].count("<image>") for message in talk]
        assert placeholders[0] == len(images(record))
        assert not any(placeholders[1:])
        starts += talk[0]["value"].startswith("<image>")
        ends += talk[0]["value"].endswith("<image>")
        turns.add(len(talk) // 2)
        assert all(len(message["value"].split()) <= 2 for message in talk[1::2])
    assert starts > ends > 10
    assert turns == {1, 2, 3, 4, 5}
    assert len({record["id"] for record in records}) == NUM
    assert any(len(images(record)) == 2 for record in records)


def test_bytes_depend_on_the_arguments_alone(drawn, tmp_path):
    folder, summary = drawn
    again = write_drawn_dataset(tmp_path / "again", num_entries=NUM, seed=3)
    assert again == summary
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    write_drawn_dataset(tmp_path / "other", num_entries=NUM, seed=4)
    other, _ = load(tmp_path / "other")
    assert other != load(folder)[0]


def test_a_longer_collection_starts_with_the_shorter_one(tmp_path):
    write_drawn_dataset(tmp_path / "a", num_entries=20, seed=1, plant_defects=False)
    write_drawn_dataset(tmp_path / "b", num_entries=40, seed=1, plant_defects=False)
    assert load(tmp_path / "b")[0][:20] == load(tmp_path / "a")[0]


def test_rotated_file_is_right_only_when_its_exif_orientation_is_applied(drawn):
    folder, summary = drawn
    records, files = load(folder)
    (name,) = summary.planted["rotated"]
    record = next(record for record in records if record["id"] == name)
    stored = Image.open(io.BytesIO(files[record["image"]]))
    assert stored.getexif()[0x0112] == 6
    for seed in range(8):
        entry = draw_entry(seed, 0, image_size=168, planted="rotated")
        plain = draw_entry(seed, 0, image_size=168, planted="missing")
        assert entry.record == plain.record
        talk = entry.record["conversations"]
        truth = {
            human["value"].replace("<image>", "").strip(): gpt["value"]
            for human, gpt in zip(talk[::2], talk[1::2], strict=True)
        }
        if {"Where is the shape?", "What color is the shape?"} <= truth.keys():
            (data,) = entry.files.values()
            shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            x, y = cell_centre(POSITIONS.index(truth["Where is the shape?"]), shown.size)
            around = shown.crop((round(x) - 22, round(y) - 22, round(x) + 22, round(y) + 22))
            target = COLORS[truth["What color is the shape?"]]
            hits = sum(
                count
                for count, pixel in around.getcolors(44 * 44) or []
                if max(abs(a - b) for a, b in zip(pixel, target, strict=True)) < 40
            )
            assert hits > 200


def test_truncated_file_keeps_its_size_and_cannot_be_decoded(drawn):
    folder, summary = drawn
    records, files = load(folder)
    (name,) = summary.planted["truncated"]
    data = files[next(record["image"] for record in records if record["id"] == name)]
    assert min(Image.open(io.BytesIO(data)).size) >= 150
    assert not decodes(data)


def test_transparent_picture_can_be_read_on_white_and_without_its_alpha():
    picture = Image.new("RGB", (120, 120), "yellow")
    picture.paste(COLORS["blue"], (10, 10, 60, 60))
    cut = Image.open(io.BytesIO(encode(picture, "png_alpha")))
    page = Image.new("RGBA", cut.size, "white")
    page.alpha_composite(cut)
    assert page.getpixel((100, 100)) == (255, 255, 255, 255)
    assert cut.getpixel((100, 100)) == (0, 0, 0, 0)
    for shown in (page, cut):
        assert shown.convert("RGB").getpixel((30, 30)) == COLORS["blue"]


def test_sixteen_bit_picture_spans_the_whole_range():
    picture = Image.new("RGB", (120, 120), "white")
    picture.paste((0, 0, 0), (0, 0, 60, 60))
    deep = Image.open(io.BytesIO(encode(picture, "png_16bit")))
    assert deep.mode == "I;16"
    assert (deep.getpixel((0, 0)), deep.getpixel((100, 100))) == (0, 65535)


def test_no_color_is_asked_of_a_gray_file_and_no_background_of_a_transparent_one():
    seen = set()
    for index in range(2500):
        entry = draw_entry(7, index, image_size=112)
        asked = " ".join(message["value"] for message in entry.record["conversations"][::2])
        if entry.image_format == "png_16bit":
            assert "color" not in asked
        if entry.image_format == "png_alpha":
            assert "background" not in asked
        seen.add(entry.image_format)
    assert {"png_16bit", "png_alpha"} <= seen


def test_both_halves_of_the_collection_have_the_same_kinds(tmp_path):
    kinds = [draw_entry(0, index, image_size=112).kind for index in range(1600)]
    for kind in set(kinds):
        first, second = kinds[:800].count(kind), kinds[800:].count(kind)
        assert abs(first - second) < 5 * (first + second) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_entries": 3}, "num_entries is 3"), ({"num_entries": 8, "image_size": 28}, "is 28")],
)
def test_too_small_is_refused_with_the_value(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_drawn_dataset(tmp_path, **options)


def test_command_draws_and_prints_the_counts(tmp_path):
    app = typer.Typer()
    app.command()(draw)
    options = ["--output-dir", str(tmp_path), "--num-entries", "30", "--seed", "2"]
    result = CliRunner().invoke(app, [*options, "--detail", "fine"])
    assert result.exit_code == 0, result.output
    assert "missing 1" in result.output
    assert len(load(tmp_path)[0]) == 30
    wrong = CliRunner().invoke(app, [*options, "--detail", "finest"])
    assert wrong.exit_code == 2
    assert "finest" in wrong.output
