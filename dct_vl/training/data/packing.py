"""Which samples share a row: tight in tokens, even in visual work.

Numbers of tokens and ViT patches are those of the plans, known before anything is decoded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from megatron.energon import Sample
from megatron.energon.edataclass import edataclass

from dct_vl.inputs.samples import EncodedChat

#: the last samples of a pack may fill its rest worse than others by 1 in this many tokens, for the
#: sake of even visual work
_GIVE = 256
#: the last two samples of a pack are chosen from this many at most: all pairs are looked at
_CANDIDATES = 192
#: packs of more samples exchange single ones only: the number of pairs grows with the square
_PAIRS_UP_TO = 24
#: times that every pack may exchange samples with another
_ROUNDS = 3


@edataclass
class ChatPack(Sample):
    """Samples that share a row."""

    samples: tuple[EncodedChat, ...]


@dataclass(frozen=True, kw_only=True)
class PackBounds:
    """What a pack holds at most."""

    max_tokens: int
    max_patches: int


def select_packs(
    tokens: Sequence[int], patches: Sequence[int], bounds: PackBounds
) -> list[list[int]]:
    """Divide a buffer of samples into packs.

    Pack by pack: the longest sample that is left opens it; large samples follow, those first that
    bring its patches towards the buffer's patches per token; the last one or two fill it as
    tightly as any can. Then packs of many and of few patches exchange up to two samples for up to
    two while that evens them out.

    Every data-parallel rank packs a buffer of its own and knows nothing of the others', so ranks
    take equally long only where packs are alike: hence the evening out. For the same reason packs
    of many and of few patches alternate in the result, which keeps sums over micro batches alike.

    The same numbers always give the same packs.

    Args:
        tokens: of each sample, 1 to max_tokens.
        patches: of each sample, 0 to max_patches.

    Returns:
        Indices of samples by pack; each sample once, within a pack in the order of the buffer.

    Raises:
        ValueError: a sample that fits no pack.
    """
    size = np.asarray(tokens, dtype=np.int64)
    work = np.asarray(patches, dtype=np.int64)
    if not len(size):
        return []
    if size.max() > bounds.max_tokens or work.max() > bounds.max_patches:
        raise ValueError(
            f"samples of up to {size.max()} tokens and {work.max()} patches for packs of at most "
            f"{bounds.max_tokens} tokens and {bounds.max_patches} patches"
        )
    order = np.lexsort((-work, -size))  # the longest first
    packs = [order[pack] for pack in _fill(size[order], work[order], bounds)]
    _even_out(packs, size, work, bounds)
    by_work = sorted(range(len(packs)), key=lambda number: (-work[packs[number]].sum(), number))
    half = -(-len(by_work) // 2)
    alternating: list[int] = [0] * len(by_work)
    alternating[0::2], alternating[1::2] = by_work[:half], by_work[half:][::-1]
    return [sorted(packs[number].tolist()) for number in alternating]


def _fill(size: np.ndarray, work: np.ndarray, bounds: PackBounds) -> list[list[int]]:
    """Packs of samples that are sorted by falling size."""
    density = work.sum() / size.sum()
    wanted = density * bounds.max_tokens
    here = np.ones(len(size), dtype=bool)
    packs = []
    while here.any():
        pack = [int(here.argmax())]
        here[pack] = False
        room = bounds.max_tokens - int(size[pack[0]])
        load = int(work[pack[0]])
        while True:
            fits = np.flatnonzero(here & (size <= room) & (work <= bounds.max_patches - load))
            if not len(fits):
                break
            if room > 2.6 * size[fits].mean():
                need = (wanted - load) / room  # patches a token, for what is still to come
                miss = np.abs(work[fits] - need * size[fits])
                chosen = fits[[int((miss - density * size[fits]).argmin())]]
            else:
                fits = fits[:: -(-len(fits) // _CANDIDATES)]
                chosen = _last_ones(
                    fits, size, work, room, bounds.max_patches - load, wanted - load
                )
            pack += chosen.tolist()
            here[chosen] = False
            room -= int(size[chosen].sum())
            load += int(work[chosen].sum())
        packs.append(pack)
    return packs


def _last_ones(
    fits: np.ndarray, size: np.ndarray, work: np.ndarray, room: int, most: int, wanted: float
) -> np.ndarray:
    """The one or two of `fits` that fill `room`, nearest to the wanted number of patches."""
    pairs = size[fits][:, None] + size[fits]
    pair_work = work[fits][:, None] + work[fits]
    pairs[(pairs > room) | (pair_work > most)] = 0
    np.fill_diagonal(pairs, 0)
    enough = max(pairs.max(), size[fits].max()) - room // _GIVE
    far = np.where(size[fits] >= enough, np.abs(work[fits] - wanted), np.inf)
    pairs_far = np.where(pairs >= max(enough, 1), np.abs(pair_work - wanted), np.inf)
    if far.min() <= pairs_far.min():
        return fits[[int(far.argmin())]]
    return fits[list(np.unravel_index(pairs_far.argmin(), pairs_far.shape))]


def _even_out(
    packs: list[np.ndarray], size: np.ndarray, work: np.ndarray, bounds: PackBounds
) -> None:
    """Exchange samples between packs of many and of few patches, in place."""
    load = np.array([work[pack].sum() for pack in packs])
    room = np.array([bounds.max_tokens - size[pack].sum() for pack in packs])
    for _ in range(_ROUNDS):
        order = np.argsort(load, kind="stable")
        for light, heavy in zip(order, order[::-1][: len(order) // 2], strict=False):
            gap = load[heavy] - load[light]
            if gap <= 0.02 * load.mean():
                break
            ours, theirs = _subsets(len(packs[heavy])), _subsets(len(packs[light]))
            tokens = (ours @ size[packs[heavy]])[:, None] - theirs @ size[packs[light]]
            moved = (ours @ work[packs[heavy]])[:, None] - theirs @ work[packs[light]]
            allowed = (tokens <= room[light]) & (-tokens <= room[heavy])
            allowed &= (moved > 0) & (moved < gap)
            if not allowed.any():
                continue
            left = np.where(allowed, np.abs(gap - 2 * moved), gap)
            row, column = np.unravel_index(left.argmin(), left.shape)
            out, back = packs[heavy][ours[row]], packs[light][theirs[column]]
            packs[heavy] = np.concatenate([packs[heavy][~ours[row]], back])
            packs[light] = np.concatenate([packs[light][~theirs[column]], out])
            load[heavy] -= moved[row, column]
            load[light] += moved[row, column]
            room[heavy] += tokens[row, column]
            room[light] -= tokens[row, column]


@functools.lru_cache(maxsize=256)
def _subsets(count: int) -> np.ndarray:
    """(subsets, count) bool: none, each one and each two of `count` samples."""
    sizes = range(3) if count <= _PAIRS_UP_TO else range(2)
    members = [subset for size in sizes for subset in combinations(range(count), size)]
    out = np.zeros((len(members), count), dtype=bool)
    for row, subset in enumerate(members):
        out[row, list(subset)] = True
    return out
