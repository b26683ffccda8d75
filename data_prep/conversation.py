"""Check an entry's conversation, and repair what has only one possible repair.

Stored conversations are a system turn or none, then question and answer in turn. Their questions
hold exactly one ``<image>`` mark an image and one ``<video>`` mark a video, anywhere in them. In an
answer these words are text, and so is ``<video>`` where there is no video; a question with a mark
and no image has lost its image.
"""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_prep.model_folder import CONTROL_TOKENS
from data_prep.quarantine import Reason, Rejected
from data_prep.schema import ROLES, shortened

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A checked conversation, as it is stored."""

    turns: list[dict[str, str]]  #: ``{"from", "value"}``, with the names of roles as in the source
    repairs: tuple[str, ...]  #: names of the repairs that were made


def check_conversation(
    raw: Any, num_images: int, num_videos: int = 0, *, control: Sequence[str] = CONTROL_TOKENS
) -> Conversation:
    """Check, and repair where there is one way to; raise Rejected otherwise.

    Repairs: an integer as value becomes its digits; a last question without answer goes, unless
    an image or video belongs to it; of an entry without image, as many ``<image>`` as it has
    videos, and no ``<video>``, mark the videos; without any mark the images, and then the videos,
    are put before the first question.

    ``control`` are the tokens that no text may hold, see `data_prep.model_folder`.
    """
    media = {IMAGE_MARK: num_images, VIDEO_MARK: num_videos}
    repairs: Counter[str] = Counter()
    turns = _read_turns(raw, repairs)
    has_system = ROLES[turns[0]["from"]] == "system"
    dialogue = turns[1:] if has_system else turns
    last = dialogue[-1] if len(dialogue) > 2 and len(dialogue) % 2 else None
    shows = last and any(_count(mark, [last], number) for mark, number in media.items())
    if last and ROLES[last["from"]] == "user" and not shows:
        dialogue = dialogue[:-1]
        repairs["unanswered_question_dropped"] += 1
    roles = [ROLES[turn["from"]] for turn in dialogue]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Rejected(Reason.ROLES_DO_NOT_ALTERNATE, f"roles are {shortened(roles)}")
    if num_videos and not num_images:
        _name_videos(turns[:1] if has_system else [], dialogue, num_videos, repairs)
    # videos first: what is put in front last stands first
    for mark in (VIDEO_MARK, IMAGE_MARK) if num_videos else (IMAGE_MARK,):
        _place(mark, turns[:1] if has_system else [], dialogue, media[mark], repairs)
    _check_texts(dialogue)
    _refuse_control_tokens(turns, control)
    return Conversation(turns=[*turns[: int(has_system)], *dialogue], repairs=tuple(repairs))


def _read_turns(raw: Any, repairs: Counter[str]) -> list[dict[str, str]]:
    if not isinstance(raw, list) or not raw:
        raise Rejected(Reason.NO_CONVERSATION, f"conversations is {shortened(raw)}")
    turns = []
    for position, item in enumerate(raw):
        if not isinstance(item, dict):
            raise Rejected(Reason.MALFORMED_TURN, f"turn {position} is {shortened(item)}")
        name, value = item.get("from"), item.get("value")
        if not isinstance(name, str) or name not in ROLES:
            raise Rejected(Reason.MALFORMED_TURN, f"turn {position} is from {shortened(name)}")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
            repairs["integer_to_text"] += 1
        if not isinstance(value, str):
            raise Rejected(Reason.VALUE_NOT_TEXT, f"turn {position} holds {shortened(value)}")
        turns.append({"from": name, "value": value})
    return turns


def _name_videos(
    system: list[dict[str, str]],
    dialogue: list[dict[str, str]],
    number: int,
    repairs: Counter[str],
) -> None:
    """Videos are marked as images in LLaVA-Video-178K."""
    questions = dialogue[::2]
    if _count(VIDEO_MARK, [*system, *questions], number) or _count(IMAGE_MARK, system, number):
        return
    if _count(IMAGE_MARK, questions, number) == number:
        for turn in questions:
            turn["value"] = turn["value"].replace(IMAGE_MARK, VIDEO_MARK)
        repairs["image_marks_to_video"] += 1


def _place(
    mark: str,
    system: list[dict[str, str]],
    dialogue: list[dict[str, str]],
    number: int,
    repairs: Counter[str],
) -> None:
    in_questions, elsewhere = _count(mark, dialogue[::2], number), _count(mark, system, number)
    kind = mark.strip("<>")
    if number and not in_questions and not elsewhere:
        first = dialogue[0]
        first["value"] = f"{mark}\n" * number + first["value"]
        repairs[f"{kind}_marks_added"] += 1
    elif in_questions != number or elsewhere:
        reason = Reason.IMAGE_MARKS_MISMATCH if mark == IMAGE_MARK else Reason.VIDEO_MARKS_MISMATCH
        raise Rejected(
            reason,
            f"{in_questions} marks in questions and {elsewhere} elsewhere for {number} {kind}s",
        )


def _count(mark: str, turns: list[dict[str, str]], number: int) -> int:
    """Marks of a kind of which the entry has a number."""
    if mark == VIDEO_MARK and not number:
        return 0
    return sum(turn["value"].count(mark) for turn in turns)


def _check_texts(dialogue: list[dict[str, str]]) -> None:
    for position, turn in enumerate(dialogue):
        if turn["value"].strip():
            continue
        if position % 2:
            raise Rejected(Reason.EMPTY_ANSWER, f"answer {position // 2} is empty")
        raise Rejected(Reason.EMPTY_QUESTION, f"question {position // 2} is empty")


def _refuse_control_tokens(turns: list[dict[str, str]], control: Sequence[str]) -> None:
    start, pattern = _pattern_of(tuple(control))
    for position, turn in enumerate(turns):
        # most texts do not even hold what all of them start with
        if start in turn["value"] and (found := pattern.search(turn["value"])):
            raise Rejected(Reason.CONTROL_TOKEN, f"turn {position} holds {found[0]!r}")


@lru_cache(maxsize=1)
def _pattern_of(control: tuple[str, ...]) -> tuple[str, re.Pattern[str]]:
    """What all control tokens start with, and the pattern of any of them.

    Made once a run: the tokens of a model are hundreds, the entries a million.
    """
    longest_first = sorted(control, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
    shared = itertools.takewhile(
        lambda letters: len(set(letters)) == 1, zip(*control, strict=False)
    )
    return "".join(letters[0] for letters in shared), re.compile(pattern)
