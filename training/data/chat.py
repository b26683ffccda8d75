"""Conversations as token ids with loss masks, through the model's own chat template.

The template is rendered turn by turn; what an assistant turn adds to the rendering is what the
model must learn. Nothing is searched for in the token stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.schema import Turn

IMAGE_MARK = "<image>"
#: placeholder of one picture in the rendered template (Qwen2-VL's special token)
IMAGE_PAD = "<|image_pad|>"


class ChatError(ValueError):
    """A conversation that cannot be rendered, with a short `reason` for the counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TokenizedChat:
    """A conversation as ids; each picture is still one placeholder id."""

    input_ids: tuple[int, ...]
    #: True for the ids that the model must predict
    is_answer: tuple[bool, ...]
    num_images: int


class ChatTokenizer:
    """Renders and tokenises conversations with a Hugging Face tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the tokenizer has no chat template: expected a Qwen2-VL folder with "
                "tokenizer_config.json or chat_template.json"
            )
        self.tokenizer = tokenizer
        self.image_pad_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        if self.image_pad_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no {IMAGE_PAD} token: not a Qwen2-VL tokenizer")
        specials = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)))

    def tokenize(self, turns: Sequence[Turn], num_images: int) -> TokenizedChat:
        """Token ids and answer mask of a whole conversation.

        Args:
            turns: user and assistant turns in order, an optional system turn first; `<image>` in
                a turn marks the place of a picture.
            num_images: pictures of the sample. Without any mark they precede the first question.

        Raises:
            ChatError: marks and pictures differ in number, there is no answer, or the text holds
                one of the template's control tokens.
        """
        messages = self.messages(turns, num_images)
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
                piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += piece
                mask += [is_answer] * len(piece)
            rendered = whole
        return TokenizedChat(input_ids=tuple(ids), is_answer=tuple(mask), num_images=num_images)

    def prompt(self, turns: Sequence[Turn], num_images: int) -> TokenizedChat:
        """Token ids up to the point where the model answers the last (user) turn."""
        text = self._render(self.messages(turns, num_images), generate=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return TokenizedChat(
            input_ids=tuple(ids), is_answer=(False,) * len(ids), num_images=num_images
        )

    def messages(self, turns: Sequence[Turn], num_images: int) -> list[dict[str, Any]]:
        """The conversation in the form that chat templates take."""
        marks = sum(turn.text.count(IMAGE_MARK) for turn in turns)
        if marks not in (0, num_images):
            raise ChatError("image_count", f"{marks} {IMAGE_MARK} marks for {num_images} images")
        first = next((turn.role for turn in turns if turn.role != "system"), None)
        if first != "user":
            raise ChatError("first_turn", f"the conversation starts with {first}; expected user")
        unplaced = num_images if marks == 0 else 0
        messages = []
        for turn in turns:
            found = self._special.search(turn.text)
            if found:
                raise ChatError("control_token", f"the text holds {found[0]!r}")
            pieces = [piece.strip("\n") for piece in turn.text.split(IMAGE_MARK)]
            content: list[dict[str, str]] = []
            if turn.role == "user" and unplaced:
                content += [{"type": "image"}] * unplaced
                unplaced = 0
            for number, piece in enumerate(pieces):
                if number:
                    content.append({"type": "image"})
                if piece:
                    content.append({"type": "text", "text": piece})
            messages.append({"role": turn.role, "content": content})
        return messages

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
