"""Keys and JSON of samples, as written and as read."""

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.sample_key import MAX_ESCAPED_ID, decode_key, encode_key
from data_prep.schema import (
    SchemaError,
    Turn,
    image_parts,
    json_part,
    parse_record,
    video_parts,
)


@given(st.text(max_size=200), st.integers(0, 10**10))
def test_key_is_safe_and_reads_back(original_id, index):
    key = encode_key(original_id, index)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
    assert len(key) <= MAX_ESCAPED_ID + 12
    back_index, back_id = decode_key(key)
    assert back_index == index
    assert back_id == original_id or (back_id is None and len(original_id) * 12 > MAX_ESCAPED_ID)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 50), st.integers(0, 50))
def test_distinct_entries_have_distinct_keys(id_a, id_b, index_a, index_b):
    if index_a != index_b:
        assert encode_key(id_a, index_a) != encode_key(id_b, index_b)


def test_readable_example():
    assert encode_key("ai2d/my_1.png", 7) == "000000007-ai2d_2Fmy__1_2Epng"


@pytest.mark.parametrize("key", ["", "7-a", "000000007-a.b", "000000007-a_2", "x00000007-a"])
def test_foreign_keys_are_refused(key):
    with pytest.raises(ValueError, match="was not made by encode_key"):
        decode_key(key)


TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]


def record(**changes):
    return {
        "conversations": TURNS,
        "id": "x/1",
        "source": "ai2d",
        "image": "ai2d/1.png",
        "width": 40,
        "height": 30,
        **changes,
    }


@pytest.mark.parametrize("wrap", [lambda r: r, orjson.dumps, lambda r: orjson.dumps(r).decode()])
def test_record_from_any_form(wrap):
    parsed = parse_record(wrap(record()))
    assert parsed.id == "x/1"
    assert parsed.source == "ai2d"
    assert parsed.turns == (
        Turn(role="user", text="<image>\nWhat?"),
        Turn(role="assistant", text="A dog."),
    )
    assert parsed.images == ("ai2d/1.png",)
    assert parsed.sizes == ((30, 40),)


def test_keys_of_other_datasets_are_understood():
    plural = {"conversations": TURNS, "images": ["a.jpg", "b.jpg"], "videos": ["c.mp4"]}
    parsed = parse_record(plural)
    assert (parsed.images, parsed.videos) == (("a.jpg", "b.jpg"), ("c.mp4",))
    assert parse_record(record(images=["ai2d/1.png"])).images == ("ai2d/1.png",)
    assert parse_record(record(images=1, videos=None)).images == ("ai2d/1.png",), "a number of them"
    first = Turn(role="system", text="Be brief.")
    assert parse_record(record(system="Be brief.")).turns[0] == first
    own = [{"from": "system", "value": "Be brief."}, *TURNS]
    assert len(parse_record(record(system="Be brief.", conversations=own)).turns) == 3
    with pytest.raises(SchemaError, match="unlike the system turn; expected one"):
        parse_record(record(system="Be long.", conversations=own))


def test_keys_that_may_hold_media_are_named():
    other = record(photo="a/b.jpg", meta={"url": "https://a.b/c.mp4"}, score=3, note="see a.jpg, b")
    assert parse_record(other).unread == ("meta", "photo")
    assert parse_record(record(a=[[[[["b.jpg"]]]]], image_url="http://x/y")).unread == (
        "a",
        "image_url",
    )
    assert parse_record(record()).unread == ()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"image": "dog.jpg"}, r"turn 0 has image with what looks like .* \(dog.jpg\)"),
        ({"images": ["dog"]}, "turn 0 has images with"),
        ({"image_url": {"url": "http://x/y"}}, "turn 0 has image_url with"),
        ({"loss": False}, "turn 0 has loss: False, so it is not to be learnt"),
        ({"weight": 0}, "turn 0 has weight: 0"),
        ({"value": "<img>dog.jpg</img>What?"}, "turn 0 names an image in its text, <img>dog.jpg<"),
    ],
)
def test_what_turns_have_beside_their_text_is_not_lost(more, reason):
    with pytest.raises(SchemaError, match=reason):
        parse_record(record(conversations=[TURNS[0] | more, TURNS[1]]))


def test_turns_may_have_what_is_no_media():
    more = {"image": None, "weight": 1, "id": 3, "note": "calm"}
    turns = parse_record(record(conversations=[TURNS[0] | more, TURNS[1]])).turns
    assert turns == parse_record(record()).turns


def test_several_images_and_bare_list():
    several = parse_record(record(image=["a", "b"], width=[1, 2], height=[3, 4], id=12))
    assert several.id == "12"
    assert several.images == ("a", "b")
    assert several.sizes == ((3, 1), (4, 2))
    bare = parse_record(orjson.dumps(TURNS))
    assert (bare.id, bare.source, bare.images, bare.sizes) == ("", "", (), ())
    assert len(bare.turns) == 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "cannot be read"),
        (b"3", "expected an object"),
        ({}, "at least one turn"),
        ([], "at least one turn"),
        (["hi"], "turn 0 is 'hi'"),
        ([{"from": "bot", "value": "x"}], "turn 0 is from 'bot'; expected one of human"),
        ([{"from": ["human"], "value": "x"}], "turn 0 is from"),
        ([{"from": "human", "value": 3}], "turn 0 has the value 3"),
        (record(image=3), "image is 3"),
        (record(id=[1]), r"id is \[1\]"),
        (record(width=[1, 2]), "1 heights, 2 widths for 1 images"),
        (record(width=0), "expected positive integers"),
        (record(height=None), "expected positive integers"),
        (record(images=["b"]), "image and images name different images; expected one of the keys"),
        (record(images=[{"path": "b"}]), "images is "),
        (record(system=3), "system is 3; expected a text"),
    ],
)
def test_reasons(data, reason):
    with pytest.raises(SchemaError, match=reason):
        parse_record(data)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["json"], []),
        (["json", "jpg"], ["jpg"]),
        (["json", "1.jpg", "0.jpg"], ["0.jpg", "1.jpg"]),
        ([*(f"{i}.jpg" for i in reversed(range(11))), "json"], [f"{i}.jpg" for i in range(11)]),
        (["0.png", "1.jpeg", "2.webp"], ["0.png", "1.jpeg", "2.webp"]),
        (["jpg.jpg", "jpg.json"], ["jpg.jpg"]),
        (["png.jpg", "png.json"], ["png.jpg"]),
        (["__key__", "__sources__", "JPG", "json"], ["JPG"]),
    ],
)
def test_image_parts(parts, expected):
    assert image_parts(dict.fromkeys(parts, b"")) == expected


@pytest.mark.parametrize("parts", [["jpg", "png"], ["jpg", "0.jpg"], ["0.jpg", "2.jpg"], ["1.jpg"]])
def test_unclear_image_parts(parts):
    with pytest.raises(SchemaError, match=r"expected (one|numbers)"):
        image_parts(dict.fromkeys(parts, b""))


def test_same_place_twice():
    with pytest.raises(SchemaError, match="claim the same place"):
        image_parts({"0.jpg": b"", "0.png": b""})


@pytest.mark.parametrize("name", ["json", "jpg.json", "png.json"])
def test_json_part(name):
    assert json_part({"__key__": "k", "jpg": b"", name: b""}) == name


@pytest.mark.parametrize("parts", [{}, {"json": b"", "jpg.json": b""}])
def test_json_part_is_one(parts):
    with pytest.raises(SchemaError, match="JSON parts among"):
        json_part(parts)


@pytest.mark.parametrize(
    ("parts", "videos"),
    [
        (["json", "mp4"], ["mp4"]),
        (["json", "1.MP4", "0.webm", "jpg"], ["0.webm", "1.MP4"]),
        (["json", "0.jpg", "1.jpg", "0.mkv"], ["0.mkv"]),
        (["json", "jpg"], []),
    ],
)
def test_videos_are_numbered_on_their_own(parts, videos):
    sample = dict.fromkeys(parts, b"")
    assert video_parts(sample) == videos
    assert len(image_parts(sample)) + len(videos) + 1 == len(parts)


def test_a_gap_among_videos_says_so():
    with pytest.raises(SchemaError, match=r"video parts \[1\]; expected numbers from 0"):
        video_parts({"json": b"", "1.mp4": b"", "0.jpg": b""})


@pytest.mark.parametrize("sides", [{}, {"width": 6, "height": 4}])
def test_paths_and_sizes_of_videos(sides):
    turns = [{"from": "human", "value": "<video>?"}, {"from": "gpt", "value": "a"}]
    record = parse_record({"conversations": turns, "video": "a/1.mp4", **sides})
    assert (record.images, record.videos, record.sizes) == ((), ("a/1.mp4",), ())


def test_sizes_of_images_come_before_those_of_videos():
    turns = [{"from": "human", "value": "<image><video>?"}, {"from": "gpt", "value": "a"}]
    both = {"image": "1.jpg", "video": ["1.mp4"], "width": [6, 8], "height": [4, 2]}
    assert parse_record({"conversations": turns, **both}).sizes == ((4, 6),)
    with pytest.raises(SchemaError, match="3 heights, 3 widths for 1 images and 1 videos"):
        parse_record({"conversations": turns, **both, "width": [1] * 3, "height": [1] * 3})
