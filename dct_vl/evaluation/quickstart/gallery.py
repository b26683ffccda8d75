"""Held-out pictures beside what the models see of them, with questions and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dct_vl.evaluation.quickstart.answers import AnswerLine
from dct_vl.evaluation.quickstart.data import SamplePicture
from dct_vl.inference.seen import reduced_uri


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture on the page."""

    title: str
    uri: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class GalleryEntry:
    """One sample: its pictures, and (main, control) answers by turn."""

    key: str
    source: str
    views: tuple[View, ...]
    answers: tuple[tuple[AnswerLine, AnswerLine], ...]


def gallery(
    pictures: Sequence[SamplePicture],
    main: Sequence[AnswerLine],
    control: Sequence[AnswerLine],
    titles: tuple[str, str],
) -> list[GalleryEntry]:
    """Entries in the order of `pictures`; pictures of one sample share an entry.

    Args:
        pictures: of held-out samples.
        main, control: the runs' answers to the same questions.
        titles: names of the main and the control tokenizer.

    Raises:
        ValueError: a picture of a sample that was not asked about.
    """
    grouped: dict[str, list[SamplePicture]] = {}
    for picture in pictures:
        grouped.setdefault(picture.key, []).append(picture)
    others = {(line.key, line.turn): line for line in control}
    entries = []
    for key, group in grouped.items():
        lines = sorted((line for line in main if line.key == key), key=lambda line: line.turn)
        if not lines:
            raise ValueError(
                f"no answer about {key}, of which a picture is to be shown: choose pictures of "
                "samples that were asked about"
            )
        views = [view for picture in group for view in _views(picture, titles)]
        entries.append(
            GalleryEntry(
                key=key,
                source=lines[0].source,
                views=tuple(views),
                answers=tuple((line, others[line.key, line.turn]) for line in lines),
            )
        )
    return entries


def _views(picture: SamplePicture, titles: tuple[str, str]) -> list[View]:
    arrays = (picture.original, picture.seen, picture.seen_by_control)
    return [
        View(
            title=title,
            uri=reduced_uri(array),
            height=array.shape[0],
            width=array.shape[1],
        )
        for title, array in zip(("original", *titles), arrays, strict=True)
    ]
