"""Which squares of an image may be shown at lower resolution: 28, 56 or 112 pixels per token.

A square of S pixels is one LLM token of 2 x 2 patches of S / 2 pixels, each brought to 14 x 14 by
an ideal low-pass. What that drops is the square's AC energy beyond 14 bands per patch.

Shape legend: F frames of one temporal slice, R, C rows and columns of 28-pixel units.
"""

from __future__ import annotations

import heapq
import math

import torch

from dct_tokenizer.basis import RGB_TO_YCBCR, dct_matrix

#: Side of the smallest square, in pixels.
UNIT = 28
PATCH = 14
#: Sides of a square in units.
SPANS = (1, 2, 4)

#: (row, column, span) of a square in units.
Square = tuple[int, int, int]


def complete_groups(rows: int, columns: int, span: int) -> int:
    """Squares of `span` units that lie fully inside a grid of units."""
    return (rows // span) * (columns // span)


def budgeted_tokens(rows: int, columns: int, budget: float) -> int:
    """Tokens of a slice under a budget: the largest reachable number <= budget * rows * columns.

    Each merge of four squares saves three tokens, so numbers are reached in steps of three, down
    to the number with every complete square merged (reached where the budget is below it).
    """
    finest = rows * columns
    possible = sum(complete_groups(rows, columns, span) for span in SPANS[1:])
    wanted = math.ceil((finest - budget * finest) / 3 - 1e-9)
    return finest - 3 * min(possible, max(0, wanted))


def luma_of(frames: torch.Tensor) -> torch.Tensor:
    """float64 (F, H, W) of (F, H, W, 3) RGB in 0..255, any dtype."""
    return frames.double() @ torch.tensor(RGB_TO_YCBCR[0], dtype=torch.float64)


def dropped_energy(luma: torch.Tensor, span: int) -> torch.Tensor:
    """float64 (rows // span, columns // span) squared luma error of showing squares of `span`.

    Args:
        luma: float64 (F, H, W), see `luma_of`.
        span: 2 or 4 units.

    By Parseval the error is the energy of the patch less the energy of its lowest 14 x 14 bands.
    """
    patch = PATCH * span
    height, width = (n // (2 * patch) * 2 * patch for n in luma.shape[1:])
    dct = dct_matrix(patch, PATCH)
    grid = luma[:, :height, :width].reshape(
        len(luma), height // patch, patch, width // patch, patch
    )
    patches = grid.transpose(2, 3).contiguous()
    kept = (dct @ patches @ dct.T).square().sum((0, 3, 4))
    error = (patches.square().sum((0, 3, 4)) - kept).clamp_min(0)
    return error.reshape(height // patch // 2, 2, width // patch // 2, 2).sum((1, 3))


def squares_under_threshold(frames: torch.Tensor, threshold: float) -> list[Square]:
    """The coarsest squares whose root-mean-square luma error is at most `threshold` grey levels."""
    rows, columns = frames.shape[1] // UNIT, frames.shape[2] // UNIT
    covered = torch.zeros(rows, columns, dtype=torch.bool)
    squares: list[Square] = []
    luma = luma_of(frames)
    for span in reversed(SPANS):
        num_pixels = len(frames) * (UNIT * span) ** 2
        if span == 1:
            fits = torch.ones(rows, columns, dtype=torch.bool)
        else:
            fits = (dropped_energy(luma, span) / num_pixels).sqrt() <= threshold
        for row, column in (fits.nonzero() * span).tolist():
            if not covered[row, column]:
                covered[row : row + span, column : column + span] = True
                squares.append((row, column, span))
    return sorted(squares)


def squares_within_budget(frames: torch.Tensor, num_tokens: int) -> list[Square]:
    """Exactly `num_tokens` squares, merged cheapest first by the squared luma error they add.

    `num_tokens` must come from `budgeted_tokens`.
    """
    rows, columns = frames.shape[1] // UNIT, frames.shape[2] // UNIT
    squares: set[Square] = {(r, c, 1) for r in range(rows) for c in range(columns)}
    luma = luma_of(frames)
    errors = {span: dropped_energy(luma, span) for span in SPANS[1:]}
    double = errors[2].tolist()
    heap: list[tuple[float, Square]] = [
        (error, (2 * r, 2 * c, 2)) for r, line in enumerate(double) for c, error in enumerate(line)
    ]
    heapq.heapify(heap)
    while len(squares) > num_tokens:
        _, (row, column, span) = heapq.heappop(heap)
        half = span // 2
        parts = [(row + i * half, column + j * half, half) for i in (0, 1) for j in (0, 1)]
        squares.difference_update(parts)
        squares.add((row, column, span))
        top, left = row // 4 * 4, column // 4 * 4
        siblings = [(top + 2 * i, left + 2 * j, 2) for i in (0, 1) for j in (0, 1)]
        if span == 2 and squares.issuperset(siblings):
            already = sum(double[r // 2][c // 2] for r, c, _ in siblings)
            added = errors[4][top // 4, left // 4].item() - already
            heapq.heappush(heap, (max(0.0, added), (top, left, 4)))
    return sorted(squares)


def low_pass_patches(frames: torch.Tensor, span: int) -> torch.Tensor:
    """(F, rows, columns, 3, 14, 14): each complete patch of 14 * span pixels.

    Args:
        frames: (F, H, W, 3) in 0..255, uint8 or float32.
        span: in units. Patches of 1 are the pixels, of their dtype; larger ones float32.
    """
    patch = PATCH * span
    height, width = (n // (2 * patch) * 2 * patch for n in frames.shape[1:3])
    grid = frames[:, :height, :width].reshape(
        len(frames), height // patch, patch, width // patch, patch, 3
    )
    patches = grid.permute(0, 1, 3, 5, 2, 4).contiguous()
    if span == 1:
        return patches
    # An orthonormal DCT of n samples is larger by sqrt(n / 14) than one of 14 of the same signal.
    shrink = (dct_matrix(PATCH).T @ dct_matrix(patch, PATCH)).float() / math.sqrt(span)
    return shrink @ patches.float() @ shrink.T


def enlarge_patches(patches: torch.Tensor, span: int) -> torch.Tensor:
    """(..., 14 * span, 14 * span) of (..., 14, 14): the inverse on low-passed patches."""
    patch = PATCH * span
    grow = (dct_matrix(patch, PATCH).T @ dct_matrix(PATCH)).to(patches.dtype) * math.sqrt(span)
    return grow @ patches @ grow.T
