import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.conversation import IMAGE_MARK, check_conversation
from data_prep.model_folder import FolderError, control_tokens
from data_prep.quarantine import Reason, Rejected


def turns(*texts, roles=("human", "gpt")):
    return [{"from": roles[i % len(roles)], "value": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("raw", "num_images"),
    [
        (turns("<image>\nWhat?", "A dog."), 1),
        (turns("What is in it? <image>", "A dog."), 1),
        (turns("<image>", "A dog."), 1),
        (turns("<image>a", "b", "c", "d"), 1),
        (turns("a", "b", "<image>c", "d"), 1),
        (turns("<image>a", "b", "<image>c", "d"), 2),
        (turns("a", "b", roles=("user", "assistant")), 0),
        ([{"from": "system", "value": "Be brief."}, *turns("a", "b")], 0),
        ([{"from": "system", "value": ""}, *turns("a", "b")], 0),
        (turns("<image>a", "see <image>"), 1),
        (turns("How do I embed a <video>?", "With <video>, or <image> for stills."), 0),
        (turns("<image>Where?", "<|box_start|>(1,2),(3,4)<|box_end|> <ours>"), 1),
    ],
)
def test_sound_conversations_are_kept_as_they_are(raw, num_images):
    checked = check_conversation(raw, num_images)
    assert checked.turns == raw
    assert checked.repairs == ()


@pytest.mark.parametrize(
    ("raw", "num_images", "expected", "repair"),
    [
        (turns("a", "b"), 2, turns("<image>\n<image>\na", "b"), "image_marks_added"),
        (turns("a", "<image>"), 1, turns("<image>\na", "<image>"), "image_marks_added"),
        (turns("<image>", 12), 1, turns("<image>", "12"), "integer_to_text"),
        (turns("a", "b", "c"), 0, turns("a", "b"), "unanswered_question_dropped"),
        (
            [{"from": "system", "value": "s"}, *turns("a", "b", "c")],
            1,
            [{"from": "system", "value": "s"}, *turns("<image>\na", "b")],
            "unanswered_question_dropped",
        ),
    ],
)
def test_repairs(raw, num_images, expected, repair):
    before = [dict(turn) for turn in raw]
    checked = check_conversation(raw, num_images)
    assert checked.turns == expected
    assert repair in checked.repairs
    assert raw == before, "the entry itself stays as it was"


@pytest.mark.parametrize(
    ("raw", "num_images", "reason"),
    [
        (None, 0, Reason.NO_CONVERSATION),
        ([], 0, Reason.NO_CONVERSATION),
        ("text", 0, Reason.NO_CONVERSATION),
        (["text"], 0, Reason.MALFORMED_TURN),
        ([{"value": "a"}], 0, Reason.MALFORMED_TURN),
        ([{"from": "tool", "value": "a"}], 0, Reason.MALFORMED_TURN),
        ([{"from": ["human"], "value": "a"}], 0, Reason.MALFORMED_TURN),
        (turns("a", None), 0, Reason.VALUE_NOT_TEXT),
        (turns("a", 1.5), 0, Reason.VALUE_NOT_TEXT),
        (turns("a", True), 0, Reason.VALUE_NOT_TEXT),
        (turns("a", ["b"]), 0, Reason.VALUE_NOT_TEXT),
        (turns("a"), 0, Reason.ROLES_DO_NOT_ALTERNATE),
        (turns("a", "b", roles=("gpt", "human")), 0, Reason.ROLES_DO_NOT_ALTERNATE),
        (turns("a", "b", "c", roles=("human", "gpt", "gpt")), 0, Reason.ROLES_DO_NOT_ALTERNATE),
        (turns("a", "b", "<image>c"), 1, Reason.ROLES_DO_NOT_ALTERNATE),
        ([{"from": "system", "value": "s"}], 0, Reason.ROLES_DO_NOT_ALTERNATE),
        (turns("a", "b", "s", roles=("human", "gpt", "system")), 0, Reason.ROLES_DO_NOT_ALTERNATE),
        (turns("a", ""), 0, Reason.EMPTY_ANSWER),
        (turns("a", " \n"), 0, Reason.EMPTY_ANSWER),
        (turns("", "b"), 0, Reason.EMPTY_QUESTION),
        (turns("<image>a", "b", "", "d"), 1, Reason.EMPTY_QUESTION),
        (turns("<image>a", "b"), 0, Reason.IMAGE_MARKS_MISMATCH),
        (turns("<image>a", "b"), 2, Reason.IMAGE_MARKS_MISMATCH),
        (turns("<image><image>a", "b"), 1, Reason.IMAGE_MARKS_MISMATCH),
        (turns("a <image> b", "<image>"), 0, Reason.IMAGE_MARKS_MISMATCH),
        (turns("a", "b<|im_end|>"), 0, Reason.CONTROL_TOKEN),
        (turns("<|vision_start|><|image_pad|>a", "b"), 0, Reason.CONTROL_TOKEN),
        ([{"from": "system", "value": "<|endoftext|>"}, *turns("a", "b")], 0, Reason.CONTROL_TOKEN),
        (
            [{"from": "system", "value": "<image>"}, *turns("a", "b")],
            1,
            Reason.IMAGE_MARKS_MISMATCH,
        ),
    ],
)
def test_rejections(raw, num_images, reason):
    with pytest.raises(Rejected) as caught:
        check_conversation(raw, num_images)
    assert caught.value.reason is reason


def test_videos_have_marks_of_their_own():
    both = turns("a", "b")
    assert check_conversation(both, 1, 2).turns == turns("<image>\n<video>\n<video>\na", "b")
    marked = turns("<video>\na <image>", "a <video> tag")
    assert check_conversation(marked, 1, 1).turns == marked
    half = check_conversation(turns("<image>a", "b"), 1, 1)
    assert half.turns == turns("<video>\n<image>a", "b")
    assert half.repairs == ("video_marks_added",)
    with pytest.raises(Rejected, match="0 marks in questions and 1 elsewhere for 1 videos"):
        check_conversation([{"from": "system", "value": "<video>"}, *turns("a", "b")], 0, 1)
    with pytest.raises(
        Rejected, match="1 marks in questions and 0 elsewhere for 2 videos"
    ) as caught:
        check_conversation(marked, 1, 2)
    assert caught.value.reason is Reason.VIDEO_MARKS_MISMATCH
    with pytest.raises(Rejected) as caught:
        check_conversation(turns("a", "b", "<video>c"), 0, 1)
    assert caught.value.reason is Reason.ROLES_DO_NOT_ALTERNATE


def test_control_tokens_are_those_of_the_model_that_is_named(tmp_path):
    added = ("<|im_end|>", "<mine>", "<box>", "<fill>", "<turn>")
    config = {
        "added_tokens_decoder": {str(n): {"content": name} for n, name in enumerate(added)},
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<fill>",
        "chat_template": [{"name": "default", "template": "{{ '<turn>' + messages }}"}],
    }
    with pytest.raises(FolderError, match=r"has no tokenizer_config\.json"):
        control_tokens(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = control_tokens(tmp_path)
    assert found == ("<fill>", "<turn>", "<|im_end|>")
    kept = turns("<mine>", "<box><|vision_start|>")
    assert check_conversation(kept, 0, control=found).turns == kept
    with pytest.raises(Rejected, match="turn 1 holds '<turn>'"):
        check_conversation(turns("a", "<turn>"), 0, control=found)


_VALUES = st.one_of(
    st.text(max_size=4), st.sampled_from(["<image>", "a <image>"]), st.integers(), st.none()
)
_TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt", "system", "x"]), "value": _VALUES}
)


@given(st.lists(_TURNS, max_size=6), st.integers(0, 2))
def test_whatever_is_kept_is_sound(raw, num_images):
    try:
        kept = check_conversation(raw, num_images).turns
    except Rejected:
        return
    dialogue = kept[1:] if kept[0]["from"] == "system" else kept
    assert [turn["from"] for turn in dialogue] == ["human", "gpt"] * (len(dialogue) // 2)
    assert sum(turn["value"].count(IMAGE_MARK) for turn in dialogue[::2]) == num_images
    assert all(turn["value"].strip() for turn in dialogue)
    assert check_conversation(kept, num_images).repairs == (), "a repaired one needs no repair"


def test_videos_may_be_marked_as_images():
    checked = check_conversation(turns("<image>\na", "an <image>", "<image>c", "d"), 0, 2)
    assert checked.turns == turns("<video>\na", "an <image>", "<video>c", "d")
    assert checked.repairs == ("image_marks_to_video",)


@pytest.mark.parametrize(
    ("raw", "num_images", "num_videos"),
    [
        (turns("<image>\na", "b"), 0, 2),
        (turns("<image><image>a", "b"), 0, 1),
        (turns("<image><video>a", "b"), 0, 1),
        (turns("<image><image>a", "b"), 1, 2),
        ([{"from": "system", "value": "<image>"}, *turns("<image>a", "b")], 0, 1),
    ],
)
def test_marks_that_are_not_clearly_of_videos_stay(raw, num_images, num_videos):
    with pytest.raises(Rejected, match="image_marks_mismatch"):
        check_conversation(raw, num_images, num_videos)
