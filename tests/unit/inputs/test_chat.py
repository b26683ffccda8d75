"""Conversations become the ids of Qwen2-VL's template, and answers alone are learnt."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_chats import messages
from transformers import AutoTokenizer

from data_prep.model_folder import CONTROL_TOKENS, control_tokens
from data_prep.schema import Turn
from dct_vl.errors import ConfigError
from dct_vl.inputs.chat import ChatError, ChatTokenizer, read_chat_tokenizer

PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def chat(tokenizer) -> ChatTokenizer:
    return ChatTokenizer(tokenizer)


def turns(*pairs: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role=role, text=text) for role, text in pairs)


def rendered(chat: ChatTokenizer, *pairs: tuple[str, str], images: int) -> str:
    """The user's part of the prompt as text."""
    ids = chat.tokenize(turns(*pairs, ("assistant", "a")), images).input_ids
    text = chat.tokenizer.decode(ids)
    return text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]


CONVERSATIONS = [
    [("human", "<image>\nWhat color?"), ("gpt", "dark blue")],
    [("human", "A?"), ("gpt", "b"), ("human", "<image>\nC?"), ("gpt", "d\n\ne "), ("human", "F")],
    [("system", "Be brief."), ("human", "one <image> two <image>"), ("gpt", "  <b> 3")],
    [("human", "Zürich 你好 🙂"), ("gpt", "日本 123"), ("human", "\n\n"), ("gpt", "\n1")],
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_ids_are_those_of_the_whole_rendered_conversation(chat, tokenizer, conversation):
    """Up to the last answer; what follows it can teach nothing and is left out."""
    while conversation[-1][0] != "gpt":
        conversation = conversation[:-1]
    row = {"turns": conversation}
    text = tokenizer.apply_chat_template(messages(row), tokenize=False)
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found = chat.tokenize(
        turns(*((roles[who], text) for who, text in conversation)),
        sum(text.count("<image>") for _, text in conversation),
    )
    assert list(found.input_ids) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_mask_covers_answers_and_their_end_marks(chat, tokenizer, conversation):
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found = chat.tokenize(
        turns(*((roles[who], text) for who, text in conversation)),
        sum(text.count("<image>") for _, text in conversation),
    )
    pieces: list[list[int]] = []
    previous = False
    for token, is_answer in zip(found.input_ids, found.is_answer, strict=True):
        if is_answer and not previous:
            pieces.append([])
        if is_answer:
            pieces[-1].append(token)
        previous = is_answer
    answers = [text.strip("\n") + "<|im_end|>" for who, text in conversation if who == "gpt"]
    assert [tokenizer.decode(piece) for piece in pieces] == answers


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_any_text_is_learnt_in_full(chat, exchanges):
    """The learnt ids of a conversation are its answers, each with one end mark."""
    pairs = [pair for q, a in exchanges for pair in (("user", q), ("assistant", a))]
    found = chat.tokenize(turns(*pairs), 0)
    learnt = [t for t, m in zip(found.input_ids, found.is_answer, strict=True) if m]
    end = chat.tokenizer.eos_token_id
    assert learnt.count(end) == len(exchanges)
    expected = []
    for _, answer in exchanges:
        expected += chat.tokenizer(answer.strip("\n"))["input_ids"] + [end]
    assert learnt == expected


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("<image>\nWhat?", 1, f"{PICTURE}What?"),
        ("What?\n<image>", 1, f"What?{PICTURE}"),
        ("What?", 1, f"{PICTURE}What?"),
        ("Is <image> like <image>?", 2, f"Is {PICTURE} like {PICTURE}?"),
        ("<image><image>", 2, PICTURE * 2),
        ("Both?", 2, f"{PICTURE * 2}Both?"),
        ("No picture?", 0, "No picture?"),
    ],
)
def test_marks_say_where_pictures_stand(chat, text, images, expected):
    assert rendered(chat, ("user", text), images=images) == expected


def test_marks_may_stand_in_later_turns(chat):
    found = chat.tokenize(
        turns(("user", "A"), ("assistant", "b"), ("user", "<image> C"), ("assistant", "d")), 1
    )
    text = chat.tokenizer.decode(found.input_ids)
    assert text.index("b<|im_end|>") < text.index(PICTURE) < text.index(" C")
    assert found.media == ("image",)


@pytest.mark.parametrize(
    ("pairs", "images", "reason", "detail"),
    [
        ([("user", "<image> a"), ("assistant", "b")], 2, "image_count", "1 <image> marks for 2"),
        ([("user", "<image> a"), ("assistant", "b")], 0, "image_count", "1 <image> marks for 0"),
        ([("user", "a <|im_end|>"), ("assistant", "b")], 0, "control_token", "'<|im_end|>'"),
        ([("user", "a"), ("assistant", "<|image_pad|>")], 0, "control_token", "image_pad"),
        ([("user", "a")], 0, "no_answer", "no assistant turn"),
    ],
)
def test_what_cannot_be_rendered_says_why(chat, pairs, images, reason, detail):
    with pytest.raises(ChatError, match=reason) as caught:
        chat.tokenize(turns(*pairs), images)
    assert caught.value.reason == reason
    assert detail in str(caught.value)


@pytest.mark.parametrize(
    "text", ["<|box_start|>(1,2)<|box_end|>", "<|object_ref_start|>a", "<ours>"]
)
def test_content_tokens_are_learnt_as_the_tokens_that_they_are(tiny_model, text):
    """Qwen's own grounding, and tokens that a user has added."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<ours>"]}, False)
    found = ChatTokenizer(tokenizer).tokenize(turns(("user", text), ("assistant", text)), 0)
    learnt = [t for t, m in zip(found.input_ids, found.is_answer, strict=True) if m]
    assert learnt == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert max(learnt) in tokenizer.get_added_vocab().values()


def test_tokens_of_template_vision_and_padding_are_no_text(chat, tiny_model):
    assert control_tokens(tiny_model) == CONTROL_TOKENS
    for token in CONTROL_TOKENS:
        with pytest.raises(ChatError, match="control_token"):
            chat.tokenize(turns(("user", "a"), ("assistant", f"b{token}")), 0)


@pytest.mark.parametrize(
    ("question", "answer", "images", "videos"),
    [
        ("How do I embed a clip?", "With <video> and <image>.", 0, 0),
        ("<image>\nWhat tag shows it?", "<image>, not <video>", 1, 0),
        ("Is <video> a tag?", "yes", 0, 0),
        ("<image>Is <video> a tag?", "yes", 1, 0),
        ("<video>\nWhat tag?", "<video>", 0, 1),
    ],
)
def test_marks_that_stand_for_nothing_are_text(chat, question, answer, images, videos):
    pairs = turns(("user", question), ("assistant", answer))
    found = chat.tokenize(pairs, images, videos)
    assert found.media == ("image",) * images + ("video",) * videos
    text = chat.tokenizer.decode(found.input_ids)
    assert f"<|im_start|>assistant\n{answer}<|im_end|>" in text
    asked = text.partition("<|im_start|>assistant")[0]
    assert ("<video>" in asked) == ("<video>" in question and not videos)


def test_the_processors_template_comes_first(tiny_model, tmp_path):
    """Qwen2.5-VL's folders on the hub have one for text beside their tokenizer."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "chat_template": "{{ messages[0].content + '' }}"}))
    pairs = turns(("user", "What?"), ("assistant", "b"))
    expected = read_chat_tokenizer(tiny_model).tokenize(pairs, 1)
    assert expected.media == ("image",)
    assert read_chat_tokenizer(folder).tokenize(pairs, 1) == expected
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.json").write_text('{"chat_template": "{{ 1 }}"}')
    with pytest.raises(ConfigError, match=r"renders one image as 0 .*it is one for text"):
        read_chat_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    assert read_chat_tokenizer(folder).tokenize(pairs, 1) == expected
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text("{")
    with pytest.raises(ConfigError, match=r"chat_template\.json is damaged"):
        read_chat_tokenizer(folder)


def test_a_prompt_ends_where_the_answer_begins(chat):
    question = turns(("user", "<image> A?"), ("assistant", "b"), ("user", "C?"))
    prompt = chat.prompt(question, 1).input_ids
    whole = chat.tokenize((*question, Turn(role="assistant", text="d")), 1)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.is_answer[len(prompt)]
    assert not whole.is_answer[len(prompt) - 1]


def test_a_tokenizer_that_cannot_serve_is_refused(tokenizer, tiny_model):
    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = None
    with pytest.raises(ValueError, match="no chat template: expected a Qwen2-VL folder"):
        ChatTokenizer(plain)


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_model):
    plain = AutoTokenizer.from_pretrained(tiny_model)
    plain.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.role }}{% endfor %}"
    two = turns(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        ChatTokenizer(plain).tokenize(two, 0)
