"""Check an entry's conversation, and repair what has only one possible repair.

Stored conversations are a system turn or none, then question and answer in turn, and hold exactly
one ``<image>`` mark an image and one ``<video>`` mark a video, in questions only. A mark may stand
anywhere in its question.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from data_prep.quarantine import Reason, Rejected
from data_prep.schema import ROLES, shortened

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A checked conversation, as it is stored."""

    turns: list[dict[str, str]]  #: ``{"from", "value"}``, with the names of roles as in the source
    repairs: tuple[str, ...]  #: names of the repairs that were made


def check_conversation(raw: Any, num_images: int, num_videos: int = 0) -> Conversation:
    """Check, and repair where there is one way to; raise Rejected otherwise.

    Repairs: an integer as value becomes its digits; a last question without answer goes, unless
    an image or video belongs to it; without any ``<image>`` the images are put before the first
    question, and likewise the videos, behind such images.
    """
    repairs: Counter[str] = Counter()
    turns = _read_turns(raw, repairs)
    has_system = ROLES[turns[0]["from"]] == "system"
    dialogue = turns[1:] if has_system else turns
    last = dialogue[-1] if len(dialogue) > 2 and len(dialogue) % 2 else None
    if last and ROLES[last["from"]] == "user" and not _has_mark(last["value"]):
        dialogue = dialogue[:-1]
        repairs["unanswered_question_dropped"] += 1
    roles = [ROLES[turn["from"]] for turn in dialogue]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Rejected(Reason.ROLES_DO_NOT_ALTERNATE, f"roles are {shortened(roles)}")
    others = [turn["value"] for turn in [*turns[: int(has_system)], *dialogue[1::2]]]
    questions = [turn["value"] for turn in dialogue[::2]]
    added = ""
    for kind, number in (("image", num_images), ("video", num_videos)):
        if missing := _missing_marks(kind, number, questions, others):
            added += missing
            repairs[f"{kind}_marks_added"] += 1
    dialogue[0]["value"] = added + dialogue[0]["value"]
    _check_texts(dialogue)
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


def _has_mark(text: str) -> bool:
    return IMAGE_MARK in text or VIDEO_MARK in text


def _missing_marks(kind: str, number: int, questions: list[str], others: list[str]) -> str:
    """Marks to put before the first question: those of all images or videos, or none."""
    mark = f"<{kind}>"
    in_questions = sum(text.count(mark) for text in questions)
    elsewhere = sum(text.count(mark) for text in others)
    if number and not in_questions and not elsewhere:
        return f"{mark}\n" * number
    if in_questions != number or elsewhere:
        raise Rejected(
            Reason(f"{kind}_marks_mismatch"),
            f"{in_questions} marks in questions and {elsewhere} elsewhere for {number} {kind}s",
        )
    return ""


def _check_texts(dialogue: list[dict[str, str]]) -> None:
    for position, turn in enumerate(dialogue):
        if turn["value"].strip():
            continue
        if position % 2:
            raise Rejected(Reason.EMPTY_ANSWER, f"answer {position // 2} is empty")
        raise Rejected(Reason.EMPTY_QUESTION, f"question {position // 2} is empty")
