"""Check an entry's conversation, and repair what has only one possible repair.

Stored conversations are a system turn or none, then question and answer in turn, and hold exactly
one ``<image>`` mark an image, in questions only. A mark may stand anywhere in its question.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from data_prep.quarantine import Reason, Rejected
from data_prep.schema import ROLES, shortened

IMAGE_MARK = "<image>"


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A checked conversation, as it is stored."""

    turns: list[dict[str, str]]  #: ``{"from", "value"}``, with the names of roles as in the source
    repairs: tuple[str, ...]  #: names of the repairs that were made


def check_conversation(raw: Any, num_images: int) -> Conversation:
    """Check, and repair where there is one way to; raise Rejected otherwise.

    Repairs: an integer as value becomes its digits; a last question without answer goes, unless
    an image belongs to it; without any ``<image>`` the images are put before the first question.
    """
    repairs: Counter[str] = Counter()
    turns = _read_turns(raw, repairs)
    has_system = ROLES[turns[0]["from"]] == "system"
    dialogue = turns[1:] if has_system else turns
    last = dialogue[-1] if len(dialogue) > 2 and len(dialogue) % 2 else None
    if last and ROLES[last["from"]] == "user" and IMAGE_MARK not in last["value"]:
        dialogue = dialogue[:-1]
        repairs["unanswered_question_dropped"] += 1
    roles = [ROLES[turn["from"]] for turn in dialogue]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise Rejected(Reason.ROLES_DO_NOT_ALTERNATE, f"roles are {shortened(roles)}")
    _place_images(turns[:1] if has_system else [], dialogue, num_images, repairs)
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


def _place_images(
    system: list[dict[str, str]],
    dialogue: list[dict[str, str]],
    num_images: int,
    repairs: Counter[str],
) -> None:
    in_questions = sum(turn["value"].count(IMAGE_MARK) for turn in dialogue[::2])
    elsewhere = sum(turn["value"].count(IMAGE_MARK) for turn in [*system, *dialogue[1::2]])
    if num_images and not in_questions and not elsewhere:
        first = dialogue[0]
        first["value"] = f"{IMAGE_MARK}\n" * num_images + first["value"]
        repairs["image_marks_added"] += 1
    elif in_questions != num_images or elsewhere:
        raise Rejected(
            Reason.IMAGE_MARKS_MISMATCH,
            f"{in_questions} marks in questions and {elsewhere} elsewhere for {num_images} images",
        )


def _check_texts(dialogue: list[dict[str, str]]) -> None:
    for position, turn in enumerate(dialogue):
        if turn["value"].strip():
            continue
        if position % 2:
            raise Rejected(Reason.EMPTY_ANSWER, f"answer {position // 2} is empty")
        raise Rejected(Reason.EMPTY_QUESTION, f"question {position // 2} is empty")
