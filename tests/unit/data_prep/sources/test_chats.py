"""Conversations in the words of several tools, and where their media may stand."""

import base64
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_set import conversation, jpeg

from data_prep.sources import Entry, Inline, ReadOptions, Refusal, Source
from data_prep.sources.chats import read_entry

ASKED = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]
TEXT = base64.b64encode(jpeg(1)).decode()


def read(raw, data_dir=Path("/data"), **options):
    file = data_dir / "set.jsonl"
    source = Source(
        format="messages",
        data_dir=data_dir,
        file=file,
        files=(file,),
        tars=(),
        options=ReadOptions(**options),
    )
    return read_entry(source, 7, 8, raw)


def accepted(raw, **options):
    entry = read(raw, **options)
    assert isinstance(entry, Entry), entry
    return entry


def refused(raw, **options):
    refusal = read(raw, **options)
    assert isinstance(refusal, Refusal), refusal
    assert (refusal.index, refusal.line) == (7, 8)
    return refusal.reason, refusal.detail


def parts(*content):
    return [{"role": "user", "content": list(content)}, ASKED[1]]


def image(value):
    return {"type": "image", "image": value}


def text(value):
    return {"type": "text", "text": value}


def test_llava_entries_stay_as_they_are():
    raw = {"id": 3, "image": "a/b.jpg", "conversations": conversation(), "extra": {"n": 1}}
    entry = accepted(raw)
    assert entry.raw is raw
    assert [one.path for one in entry.images] == ["a/b.jpg"]
    assert entry.conversations == conversation()


@pytest.mark.parametrize("key", ["id", "key", "sample_id"])
def test_ids_by_any_name(key):
    entry = accepted({key: "x", "messages": ASKED})
    assert (entry.id, entry.raw["id"]) == ("x", "x")
    assert refused({key: 1.5, "messages": ASKED})[0] == "malformed_entry"


@pytest.mark.parametrize("key", ["image", "images", "image_path"])
def test_images_by_any_name(key):
    entry = accepted({"messages": ASKED, key: ["a.jpg"]})
    assert [one.path for one in entry.images] == ["a.jpg"]
    entry = accepted({"conversations": conversation(), key: "a.jpg", "videos": ["b.mp4"]})
    assert [one.path for one in entry.images] == ["a.jpg"]
    assert [one.path for one in entry.videos] == ["b.mp4"]


@pytest.mark.parametrize(
    "part",
    [
        image("a.jpg"),
        image({"url": "a.jpg"}),
        image({"path": "a.jpg", "bytes": None}),
        {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}},
        {"type": "image_url", "image_url": "a.jpg"},
        {"type": "input_image", "image_url": "a.jpg"},
        {"type": "image", "path": "a.jpg"},
        {"type": "image", "url": "file:///data/a.jpg"},
        {"image": "/data/a.jpg"},
    ],
)
def test_typed_parts(part):
    entry = accepted({"messages": parts(part, text("What?"))})
    assert [one.path for one in entry.images] == ["a.jpg"]
    assert entry.conversations[0] == {"from": "human", "value": "<image>\nWhat?"}
    assert entry.raw == {"id": None, "image": "a.jpg"}


def test_texts_of_parts_stand_end_to_end_and_marks_alone():
    content = [text("See "), text("here: "), image("a.jpg"), {"type": "video", "video": "b.mp4"}]
    entry = accepted({"messages": parts(*content, text("What?"), text(" Why?"))})
    assert entry.conversations[0]["value"] == "See here: \n<image>\n<video>\nWhat? Why?"
    assert [one.path for one in entry.videos] == ["b.mp4"]


def test_parts_without_values_take_those_of_the_key():
    raw = {"messages": parts({"type": "image"}, {"type": "image"}, text("?"))}
    entry = accepted(raw | {"images": ["a.jpg", "b.jpg"]})
    assert [one.path for one in entry.images] == ["a.jpg", "b.jpg"]
    assert refused(raw | {"images": ["a.jpg"]}) == (
        "malformed_entry",
        "image parts without a value: 2; images of the entry: 1",
    )
    named = {"messages": parts(image("a.jpg"), text("?"))}
    assert accepted(named | {"images": ["a.jpg"]}).images == accepted(named).images
    assert "differ from those" in refused(named | {"images": ["b.jpg"]})[1]


@pytest.mark.parametrize(
    "value",
    [
        f"data:image/jpeg;base64,{TEXT}",
        f"data:;base64,{TEXT[:40]}\n{TEXT[40:]}",
        TEXT,
        {"bytes": TEXT, "path": None},
        {"base64": TEXT},
    ],
)
def test_bytes_in_the_entry(value):
    (one,) = accepted({"messages": ASKED, "images": [value]}).images
    assert one.held == Inline(file="set.jsonl", data=jpeg(1))
    assert one.path == "set.jsonl#7"


@pytest.mark.parametrize("value", ["data:image/png,abc", "data:image/png;base64,????", {"size": 3}])
def test_damaged_values(value):
    assert refused({"messages": ASKED, "images": [value]})[0] == "malformed_entry"


@pytest.mark.parametrize("address", ["https://a.b/c.jpg", "http://a.b/c", "s3://a/b.jpg"])
def test_addresses_are_remote(address):
    reason, detail = refused({"messages": parts(image(address), text("?"))})
    assert reason == "remote"
    assert f"{address} is an address; expected a file: download it first" in detail


def test_absolute_paths_below_the_data_are_relative(tmp_path):
    paths = [
        f"{tmp_path}/a/b c.jpg",
        f"file://{tmp_path}/a/b%20c.jpg",
        "/elsewhere/a.jpg",
        "a/b.jpg",
    ]
    entry = accepted({"messages": ASKED, "images": paths}, data_dir=tmp_path)
    found = [one.path for one in entry.images]
    assert found == ["a/b c.jpg", "a/b c.jpg", "/elsewhere/a.jpg", "a/b.jpg"]


def test_system_texts_are_the_first_turn():
    first = {"from": "system", "value": "Be brief."}
    for raw in ({"messages": ASKED}, {"conversations": conversation()}):
        entry = accepted(raw | {"system": "Be brief."})
        assert entry.conversations[0] == first
        assert len(entry.conversations) == 3
    own = {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]}
    assert accepted(own | {"system": "Be brief."}).conversations == accepted(own).conversations
    assert "differs from the system turn" in refused(own | {"system": "Be long."})[1]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (ASKED[:1], "no_answer"),
        ("text", "no_conversation"),
        ([{"role": "tool", "content": "x"}], "malformed_turn"),
        (["text"], "malformed_turn"),
        ([{"role": "user", "content": None}], "value_not_text"),
        (parts({"type": "audio", "audio": "a.wav"}), "malformed_turn"),
        (parts({"type": "text"}), "malformed_turn"),
        (parts({"type": "video", "video": ["1.jpg", "2.jpg"]}), "malformed_turn"),
        (parts({"type": "video", "video": "a.mp4", "video_start": 3}), "unknown_key"),
        ([{"role": "user", "content": "?", "images": ["a.jpg"]}, ASKED[1]], "unknown_key"),
        ([ASKED[0], ASKED[1] | {"tool_calls": [{}]}], "unknown_key"),
        ([ASKED[0], ASKED[1] | {"loss": False}], "unknown_key"),
    ],
)
def test_messages_that_cannot_be_stored(messages, reason):
    assert refused({"messages": messages})[0] == reason


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("photo", "a/b.jpg"),
        ("pictures", ["a/b.png"]),
        ("media", [{"type": "image", "file": "x.webp"}]),
        ("clip", "b.mp4"),
        ("thumbnail", TEXT),
        ("tools", "[]{}"),
        ("rejected", ASKED),
    ],
)
def test_a_picture_is_never_lost_in_silence(key, value):
    for raw in ({"messages": ASKED}, {"id": 1, "conversations": conversation("What?")}):
        reason, detail = refused(raw | {key: value})
        assert reason == "unknown_key"
        assert key in detail
        assert f"--ignore {key}" in detail
        assert accepted(raw | {key: value}, ignore=(key,)).images == ()


def test_where_a_known_image_came_from_is_no_other_image():
    raw = {"messages": ASKED, "images": ["coco/a.jpg"]}
    entry = accepted(raw | {"url": "https://x.y/z.jpg", "file_name": "a.jpg", "answer": "b.jpg?"})
    assert len(entry.images) == 1
    assert refused(raw | {"second": "coco/b.jpg"})[0] == "unknown_key"


def in_turn(**more):
    return {"conversations": [conversation("What?")[0] | more, conversation("What?")[1]]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image", "dog.jpg"),
        ("images", ["dog"]),
        ("video", {"path": "a.mp4"}),
        ("image_url", "http://x/y"),
        ("image_url", {"url": "http://x/y", "detail": "high"}),
        ("content", [image("dog.jpg")]),
        ("meta", [[[[{"file": "dog.jpg"}]]]]),
        ("loss", False),
        ("weight", 0),
        ("weight", 0.0),
        ("train", False),
        ("tool_calls", [{}]),
    ],
)
@pytest.mark.parametrize("more", [{}, {"id": 1, "image": "a.jpg"}], ids=["text", "usual"])
def test_what_a_turn_has_beside_its_text_is_refused(key, value, more):
    raw = in_turn(**{key: value}) | more
    reason, detail = refused(raw)
    assert reason == "unknown_key"
    assert detail.startswith(f"turn 0 has {key}")
    assert detail.endswith(f"--ignore {key} leaves it out of all turns and entries")
    if key not in more:
        assert len(accepted(raw, ignore=(key,)).images) == len(more) // 2
    if key != "content":
        reason, detail = refused({"messages": [ASKED[0] | {key: value}, ASKED[1]]})
        assert reason == "unknown_key"
        assert detail.startswith(f"message 0 has {key}")
        accepted({"messages": [ASKED[0] | {key: value}, ASKED[1]]}, ignore=(key,))


def test_turns_may_have_what_is_no_media():
    more = {"image": None, "video": "", "loss": True, "weight": 1, "id": "t1", "score": 0.5}
    entry = accepted(in_turn(**more) | {"id": 1, "image": "a.jpg"})
    assert len(entry.images) == 1


def test_parts_have_no_media_of_another_kind():
    for part in (text("What?") | {"image": "b.jpg"}, image("a.jpg") | {"video": "b.mp4"}):
        assert refused({"messages": parts(part, text("?"))})[0] == "unknown_key"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("other_image", "dog2/dog.jpg"),
        ("other_image", "https://x/dog.jpg"),
        ("next", "https://x/second.jpg"),
        ("url", ["https://x/1.jpg", "https://x/2.jpg"]),
        ("url", "dog2/dog.jpg"),
        ("image_url", "http://x/y"),
        ("meta", {"image_url": {"url": "http://x/y"}}),
        ("meta", [[[[[{"a": {"b": "cat.jpg"}}]]]]]),
        ("broken", "http://[x/cat.jpg"),
    ],
)
def test_another_image_beside_a_known_one_is_refused(key, value):
    for raw in ({"messages": ASKED}, {"id": 1, "conversations": conversation()}):
        raw |= {"image": "dog.jpg", key: value}
        reason, detail = refused(raw)
        assert (reason, detail.split()[0]) == ("unknown_key", key)
        assert len(accepted(raw, ignore=(key,)).images) == 1


def test_the_same_image_by_other_keys_is_no_other_image():
    raw = {"messages": ASKED, "images": ["coco/a.jpg"], "path": "/data/coco/a.jpg"}
    meta = {"coco_url": "https://x.y/a.jpg", "flickr_url": "https://x.y/b.jpg"}
    assert len(accepted(raw | {"image_url": "coco/a.jpg", "meta": meta}).images) == 1


def test_media_nested_deeper_than_python_calls():
    nested = "dog.jpg"
    for _ in range(5000):
        nested = [nested]
    assert refused({"messages": ASKED, "meta": nested})[0] == "unknown_key"


def test_images_in_the_texts_of_questions_are_refused():
    asked = "Picture 1: <img>dog.jpg</img>\nWhat?"
    typed = parts(text("<img>dog.jpg"), text("</img>What?"))
    for raw in (
        {"conversations": conversation(asked)},
        {"id": 1, "image": "a.jpg", "conversations": conversation(f"<image>\n{asked}")},
        {"messages": [{"role": "user", "content": asked}, ASKED[1]]},
        {"messages": typed},
    ):
        reason, detail = refused(raw)
        assert reason == "malformed_turn"
        assert "turn 0 names an image in its text, <img>dog.jpg</img>; expected <image>" in detail
    for question in ("Close an <img> so?", "<img></img>?", '<img src="a.jpg"> is what?'):
        accepted({"conversations": conversation(question)})
    accepted({"messages": [ASKED[0], {"role": "assistant", "content": asked}]})


PIECES = st.text("ab ü<>", min_size=1, max_size=6).filter(lambda t: "<image>" not in t)


@given(
    st.lists(st.none() | PIECES, min_size=1, max_size=6).filter(
        lambda pieces: not any(a and b for a, b in itertools.pairwise(pieces))
    )
)
def test_typed_parts_and_marks_say_the_same(pieces):
    """The one form rewritten as the other: None stands for an image."""
    paths = [f"{number}.jpg" for number, piece in enumerate(pieces) if piece is None]
    in_order = iter(paths)
    typed = [image(next(in_order)) if piece is None else text(piece) for piece in pieces]
    marked = "\n".join("<image>" if piece is None else piece for piece in pieces)
    by_parts = accepted({"messages": parts(*typed)})
    by_marks = accepted(
        {"messages": [{"role": "user", "content": marked}, ASKED[1]], "images": paths}
    )
    assert by_parts.conversations == by_marks.conversations
    assert by_parts.images == by_marks.images
    assert by_parts.raw == by_marks.raw
