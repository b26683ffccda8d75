"""Conversations as token ids with loss masks and M-RoPE positions, through the model's template.

The chat template is rendered turn by turn; what an assistant turn adds to the rendering is what
the model must learn. Nothing is searched for in the token stream.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_prep.model_folder import FolderError, chat_template, control_among, template_text
from data_prep.schema import Turn
from dct_tokenizer import Plan
from dct_vl.errors import ConfigError

Kind = Literal["image", "video"]

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
#: placeholders of one image and one video in the rendered template (Qwen2-VL's special tokens)
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
#: stands in `input_ids` for a visual token, as in NeMo's model
VISUAL_TOKEN_INDEX = -200

_KIND_OF_MARK: dict[str, Kind] = {IMAGE_MARK: "image", VIDEO_MARK: "video"}
#: characters of pieces whose ids are kept, and how many pieces
_SHORT, _MOST_KNOWN = 256, 1000


class ChatError(ValueError):
    """A conversation that cannot be rendered, with a short `reason` for the counts."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TokenizedChat:
    """A conversation as ids; each image or video is still one placeholder id."""

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
        #: of images and of videos
        self.pad_ids: tuple[int, ...] = tuple(
            tokenizer.convert_tokens_to_ids([IMAGE_PAD, VIDEO_PAD])
        )
        for name, pad_id in zip((IMAGE_PAD, VIDEO_PAD), self.pad_ids, strict=True):
            if pad_id in (None, tokenizer.unk_token_id):
                raise ValueError(f"the tokenizer has no {name} token: not a Qwen2-VL tokenizer")
        self._known: dict[str, tuple[int, ...]] = {}
        ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        template = template_text(tokenizer.chat_template)
        control = control_among(tokenizer.get_added_vocab(), template, ends)
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)))

    def tokenize(
        self, turns: Sequence[Turn], num_images: int, num_videos: int = 0
    ) -> TokenizedChat:
        """Token ids and answer mask of a whole conversation.

        Args:
            turns: user and assistant turns in order, an optional system turn first; `<image>` and
                `<video>` in them mark the place of an image or video, see `count_marks`.
            num_images: images of the sample. Without any mark they precede the first question.
            num_videos: likewise; they follow images without marks.

        Raises:
            ChatError: marks and images or videos differ in number, there is no answer, or the
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
            prompt = render(self.tokenizer, messages[:position])
            whole = render(self.tokenizer, messages[: position + 1], is_prompt=False)
            if not prompt.startswith(rendered) or not whole.startswith(prompt):
                raise ValueError(
                    "the chat template rewrites earlier turns, so that answers cannot be located; "
                    "use Qwen2-VL's own template"
                )
            # answer and end mark are learnt; the line break that the template adds is not
            answer = whole[len(prompt) :].rstrip("\n")
            rest = whole[len(prompt) + len(answer) :]
            for text, is_answer in (
                (prompt[len(rendered) :], False),
                (answer, True),
                (rest, False),
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
        text = render(self.tokenizer, self.messages(turns, num_images, num_videos))
        ids = self._ids(text)
        return self._tokenized(ids, [False] * len(ids))

    def messages(
        self, turns: Sequence[Turn], num_images: int, num_videos: int = 0
    ) -> list[dict[str, Any]]:
        """The conversation in the form that chat templates take."""
        unplaced: list[dict[str, str]] = []
        num_of_mark = {IMAGE_MARK: num_images, VIDEO_MARK: num_videos}
        for mark, number in num_of_mark.items():
            kind = _KIND_OF_MARK[mark]
            marks = sum(count_marks(turn, mark, number) for turn in turns)
            if marks not in (0, number):
                raise ChatError(f"{kind}_count", f"{marks} {mark} marks for {number} {kind}s")
            unplaced += [{"type": kind}] * (number - marks)
        first = next((turn.role for turn in turns if turn.role != "system"), None)
        if first != "user":
            raise ChatError("first_turn", f"the conversation starts with {first}; expected user")
        places = [mark for mark, number in num_of_mark.items() if number]
        messages = []
        for turn in turns:
            found = self._control.search(turn.text)
            if found:
                raise ChatError("control_token", f"the text holds {found[0]!r}")
            content: list[dict[str, str]] = []
            if turn.role == "user":
                content, unplaced = unplaced, []
            marks_here = places if turn.role != "assistant" else []
            for piece in _pieces(turn.text, marks_here):
                if piece in marks_here:
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


def count_marks(turn: Turn, mark: str, number: int) -> int:
    """Marks of a turn that stand for images or videos of a sample that has `number` of them.

    In an answer they are text, and so is `<video>` without any video. `<image>` without any image
    counts all the same: its image is lost.
    """
    is_text = turn.role == "assistant" or (mark == VIDEO_MARK and not number)
    return 0 if is_text else turn.text.count(mark)


def _pieces(text: str, marks: Sequence[str]) -> list[str]:
    return re.split(f"({'|'.join(marks)})", text) if marks else [text]


def render(holder: Any, messages: list[dict[str, Any]], *, is_prompt: bool = True) -> str:
    """Text of messages in the chat template of `holder`, a tokenizer or processor of transformers;
    of a prompt up to the point where the model answers.
    """
    return holder.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_prompt)


def read_chat_tokenizer(folder: str | Path, **options: Any) -> ChatTokenizer:
    """The tokenizer of a model's folder with the folder's template, which shows images.

    Args:
        options: of `AutoTokenizer.from_pretrained`.

    Raises:
        ConfigError: files are missing or damaged, or the template is one for text.
    """
    try:
        tokenizer = read_text_tokenizer(folder, **options)
        tokenizer.chat_template = chat_template(folder) or tokenizer.chat_template
        chat = ChatTokenizer(tokenizer)
    except (FolderError, OSError) as error:
        raise ConfigError(f"the chat template of {folder} cannot be read: {error}") from error
    sample = (Turn(role="user", text="What is here?"), Turn(role="assistant", text="A cat."))
    try:
        shown = chat.tokenize(sample, num_images=1).media
        fault = f"renders one image as {len(shown)} {IMAGE_PAD}" if shown != ("image",) else ""
    except Exception as error:  # a template may raise whatever it likes
        fault = f"cannot render an image ({type(error).__name__}: {error})"
    if fault:
        raise ConfigError(
            f"the chat template of {folder} {fault}: it is one for text. Fetch chat_template.json "
            "of Qwen/Qwen2-VL-2B-Instruct or Qwen/Qwen2.5-VL-3B-Instruct into the folder"
        )
    return chat


def read_text_tokenizer(folder: str | Path, **options: Any) -> Any:
    """transformers' tokenizer of a folder; a ConfigError where files are missing or damaged."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # a damaged tokenizer.json is a bare Exception of its library
        raise ConfigError(
            f"the tokenizer of {folder} cannot be read ({error}): tokenizer.json and "
            "tokenizer_config.json are missing or damaged; fetch them again"
        ) from error


def place_media(
    chat: TokenizedChat, pad_ids: Sequence[int], plans: Sequence[Plan]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expand every placeholder to the visual tokens of its image or video.

    Positions follow Qwen2-VL: text counts up in all three rows; an image's ids start where the
    text stopped and the text goes on after the largest of them (`get_rope_index` in
    transformers 4.51.3). A video's are those of one image with several temporal ids, which count
    pairs of frames, and in Qwen2.5-VL parts of a second.

    Args:
        chat: ids with one placeholder an image or video.
        plans: one an image or video, in order.

    Returns:
        input_ids (L,) int64, is_answer (L,) bool, position_ids (3, L) int64.

    Raises:
        ValueError: placeholders and plans differ in number.
    """
    ids = np.asarray(chat.input_ids, dtype=np.int64)
    answer = np.asarray(chat.is_answer, dtype=bool)
    # np.isin takes ten times as long on a few ids
    places = np.flatnonzero((ids[:, None] == np.asarray(pad_ids)).any(axis=1))
    if len(places) != len(plans):
        raise ValueError(f"{len(places)} placeholders for {len(plans)} planned images and videos")
    out_ids: list[np.ndarray] = []
    out_answer: list[np.ndarray] = []
    out_positions: list[np.ndarray] = []
    start = next_position = 0
    for stop, plan in zip([*places.tolist(), len(ids)], [*plans, None], strict=True):
        out_ids.append(ids[start:stop])
        out_answer.append(answer[start:stop])
        run = np.arange(next_position, next_position + stop - start, dtype=np.int64)
        out_positions.append(np.broadcast_to(run, (3, len(run))))
        next_position += len(run)
        start = stop + 1
        if plan is not None:
            out_ids.append(np.full(plan.num_llm_tokens, VISUAL_TOKEN_INDEX, dtype=np.int64))
            out_answer.append(np.zeros(plan.num_llm_tokens, dtype=bool))
            positions, extent = plan.placed_ids()
            out_positions.append(positions.T + next_position)
            next_position += extent
    return (
        np.concatenate(out_ids),
        np.concatenate(out_answer),
        np.concatenate(out_positions, axis=1),
    )
