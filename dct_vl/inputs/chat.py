"""Conversations as token ids with loss masks, through the model's own chat template.

The template is rendered turn by turn; what an assistant turn adds to the rendering is what the
model must learn. Nothing is searched for in the token stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_prep.schema import Turn

Kind = Literal["image", "video"]

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
#: placeholders of one picture and one video in the rendered template (Qwen2-VL's special tokens)
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"

_KIND_OF_MARK: dict[str, Kind] = {IMAGE_MARK: "image", VIDEO_MARK: "video"}
#: characters of pieces whose ids are kept, and how many pieces
_SHORT, _MOST_KNOWN = 256, 1000
_MARK = re.compile(f"({IMAGE_MARK}|{VIDEO_MARK})")


class ChatError(ValueError):
    """A conversation that cannot be rendered, with a short `reason` for the counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TokenizedChat:
    """A conversation as ids; each picture or video is still one placeholder id."""

    input_ids: tuple[int, ...]
    #: True for the ids that the model must predict
    is_answer: tuple[bool, ...]
    #: of each placeholder, in order
    media: tuple[Kind, ...]


class ChatTokenizer:
    """Renders and tokenises conversations with a Hugging Face tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template: expected a Qwen2-VL folder with "
                "tokenizer_config.json or chat_template.json"
            )
        self.tokenizer = tokenizer
        #: of pictures and of videos
        self.pad_ids: tuple[int, ...] = tuple(
            tokenizer.convert_tokens_to_ids([IMAGE_PAD, VIDEO_PAD])
        )
        for name, pad_id in zip((IMAGE_PAD, VIDEO_PAD), self.pad_ids, strict=True):
            if pad_id in (None, tokenizer.unk_token_id):
                raise ValueError(f"the tokenizer has no {name} token: not a Qwen2-VL tokenizer")
        self._known: dict[str, tuple[int, ...]] = {}
        specials = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)))

    def tokenize(
        self, turns: Sequence[Turn], num_images: int, num_videos: int = 0
    ) -> TokenizedChat:
        """Token ids and answer mask of a whole conversation.

        Args:
            turns: user and assistant turns in order, an optional system turn first; `<image>` and
                `<video>` in a turn mark the place of a picture or video.
            num_images: pictures of the sample. Without any mark they precede the first question.
            num_videos: likewise; they follow pictures without marks.

        Raises:
            ChatError: marks and pictures or videos differ in number, there is no answer, or the
                text holds one of the template's control tokens.
        """
        messages = self.messages(turns, num_images, num_videos)
        if not any(m["role"] == "assistant" for m in messages):
            raise ChatError("no_answer", "the conversation has no assistant turn")
        ids: list[int] = []
        mask: list[bool] = []
        rendered = ""
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:position], generate=True)
            whole = self._render(messages[: position + 1], generate=False)
            if not prompt.startswith(rendered) or not whole.startswith(prompt):
                raise ValueError(
                    "the chat template rewrites earlier turns, so that answers cannot be located; "
                    "use Qwen2-VL's own template"
                )
            for text, is_answer in (
                (prompt[len(rendered) :], False),
                *self._answer_pieces(whole[len(prompt) :]),
            ):
                # not all pieces in one call: a tokenizer's threads hang a loader process that is
                # forked later
                piece = self._ids(text)
                ids += piece
                mask += [is_answer] * len(piece)
            rendered = whole
        return self._tokenized(ids, mask)

    def prompt(self, turns: Sequence[Turn], num_images: int, num_videos: int = 0) -> TokenizedChat:
        """Token ids up to the point where the model answers the last (user) turn."""
        text = self._render(self.messages(turns, num_images, num_videos), generate=True)
        ids = self._ids(text)
        return self._tokenized(ids, [False] * len(ids))

    def messages(
        self, turns: Sequence[Turn], num_images: int, num_videos: int = 0
    ) -> list[dict[str, Any]]:
        """The conversation in the form that chat templates take."""
        unplaced: list[dict[str, str]] = []
        for mark, number in ((IMAGE_MARK, num_images), (VIDEO_MARK, num_videos)):
            kind = _KIND_OF_MARK[mark]
            marks = sum(turn.text.count(mark) for turn in turns)
            if marks not in (0, number):
                raise ChatError(f"{kind}_count", f"{marks} {mark} marks for {number} {kind}s")
            unplaced += [{"type": kind}] * (number - marks)
        first = next((turn.role for turn in turns if turn.role != "system"), None)
        if first != "user":
            raise ChatError("first_turn", f"the conversation starts with {first}; expected user")
        messages = []
        for turn in turns:
            found = self._special.search(turn.text)
            if found:
                raise ChatError("control_token", f"the text holds {found[0]!r}")
            content: list[dict[str, str]] = []
            if turn.role == "user":
                content, unplaced = unplaced, []
            for piece in _MARK.split(turn.text):
                if piece in _KIND_OF_MARK:
                    content.append({"type": _KIND_OF_MARK[piece]})
                elif text := piece.strip("\n"):
                    content.append({"type": "text", "text": text})
            messages.append({"role": turn.role, "content": content})
        return messages

    def _tokenized(self, ids: Sequence[int], is_answer: Sequence[bool]) -> TokenizedChat:
        kinds: dict[int, Kind] = dict(zip(self.pad_ids, _KIND_OF_MARK.values(), strict=True))
        return TokenizedChat(
            input_ids=tuple(ids),
            is_answer=tuple(is_answer),
            media=tuple(kinds[token] for token in ids if token in kinds),
        )

    def _ids(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of the rendering; ends of turns and common questions come often."""
        found = self._known.get(text)
        if found is None:
            found = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if len(text) <= _SHORT and len(self._known) < _MOST_KNOWN:
                self._known[text] = found
        return found

    def _render(self, messages: list[dict[str, Any]], *, generate: bool) -> str:
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generate
        )

    @staticmethod
    def _answer_pieces(text: str) -> list[tuple[str, bool]]:
        """Answer and end mark are learnt; the line break that the template adds is not."""
        answer = text.rstrip("\n")
        tail = text[len(answer) :]
        return [(answer, True), (tail, False)] if tail else [(answer, True)]
