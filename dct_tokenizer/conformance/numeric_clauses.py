"""Clauses on what the front end computes. Each returns what it measured."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import torch
from torch.nn import functional as F

from dct_tokenizer.base import VisualTokenizer
from dct_tokenizer.basis import clip_mean_std, dct_matrix
from dct_tokenizer.conformance.inputs import (
    clip_of,
    expect,
    frames_per_cell,
    natural_image,
    prepared,
)
from dct_tokenizer.front_end import PATCH, PATCH_FRAMES, FrontEnd, fold
from dct_tokenizer.pixels import resize_frames

EMBED_DIM = 64
#: Relative error of an exact start in float32.
START_TOLERANCE = 2e-6
#: Bound for a start that is not claimed to be exact.
LOOSE_START = 0.5
#: Relative error allowed between two float32 paths.
FLOAT32_TOLERANCE = 1e-5
#: Relative error of bf16 parameters and inputs.
BFLOAT16_TOLERANCE = 1e-2


def pretrained_weight() -> torch.Tensor:
    """float64 (O, 3, 2, 14, 14) standing in for a checkpoint's Conv3d weight."""
    generator = torch.Generator().manual_seed(0)
    shape = (EMBED_DIM, 3, PATCH_FRAMES, PATCH, PATCH)
    return 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)


def relative_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference by the norm of the exact value."""
    difference = (value.detach().double() - exact.detach().double()).norm()
    return (difference / exact.detach().double().norm()).item()


def _still_and_clip(tokenizer: VisualTokenizer) -> list[torch.Tensor]:
    length = frames_per_cell(tokenizer)
    return [prepared(tokenizer, clip_of(90, 130, frames))[1] for frames in (1, length)]


def _moved(front_end: FrontEnd) -> FrontEnd:
    """The front end away from its start, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.01)
    return front_end


def start_reference(cells: torch.Tensor, length: int, weight: torch.Tensor) -> torch.Tensor:
    """float64 (N, O): the pretrained embedding of each cell ideally low-passed to 2 x 14 x 14."""
    size = cells.shape[-1]
    mean, std = (v[:, None, None] for v in clip_mean_std())
    pixels = ((cells.double() / 255 - mean) / std).expand(-1, length, -1, -1, -1)
    axes = []
    for samples, target in ((length, PATCH_FRAMES), (size, PATCH)):
        bands = min(samples, target)
        gain = math.sqrt(target / samples)
        axes.append(gain * dct_matrix(target, bands).T @ dct_matrix(samples, bands))
    time, space = axes
    patches = torch.einsum("st,ia,jb,ntcab->ncsij", time, space, space, pixels)
    return F.conv3d(patches, weight).flatten(1)


def check_start(tokenizer: VisualTokenizer) -> str:
    """Step 0 equals the pretrained embedding of the ideally low-passed cell, where claimed."""
    weight = pretrained_weight()
    front_end = tokenizer.front_end(EMBED_DIM, weight)
    errors = []
    for cells in _still_and_clip(tokenizer):
        exact = start_reference(cells, frames_per_cell(tokenizer), weight)
        errors.append(relative_error(front_end(cells), exact))
    bound = START_TOLERANCE if tokenizer.exact_start else LOOSE_START
    claim = "exact" if tokenizer.exact_start else "not claimed exact"
    text = f"relative error still {errors[0]:.1e}, clip {errors[1]:.1e} ({claim})"
    expect(max(errors) <= bound, f"{text}; expected at most {bound:.1e}")
    return text


def check_decode(tokenizer: VisualTokenizer) -> str:
    """decode(encode(cells)) shows a resized image and a clip as well as claimed."""
    length = frames_per_cell(tokenizer)
    still, clip = (
        _decoded_psnr(tokenizer, frames)
        for frames in (natural_image(420, 588)[None], clip_of(112, 168, length))
    )
    text = f"PSNR {still:.1f} dB, clip {clip:.1f} dB, claimed {tokenizer.psnr_bound:.1f}"
    expect(min(still, clip) >= tokenizer.psnr_bound, text)
    return text


def _decoded_psnr(tokenizer: VisualTokenizer, frames: np.ndarray) -> float:
    plan, cells = prepared(tokenizer, frames)
    decoded = tokenizer.decode(tokenizer.encode(cells), plan)
    shape = (plan.frames, plan.height, plan.width, 3)
    expect(
        decoded.shape == shape and decoded.dtype == np.uint8,
        f"decode gives {decoded.dtype} {decoded.shape}, expected uint8 {shape}",
    )
    resized = resize_frames(frames, plan.height, plan.width)
    squared = np.mean((decoded.astype(np.float64) - resized) ** 2)
    return 10 * math.log10(255**2 / squared) if squared else math.inf


def check_still(tokenizer: VisualTokenizer) -> str:
    """A still image costs one frame and gives what a clip of equal frames gives."""
    cells, _ = _still_and_clip(tokenizer)
    expect(cells.shape[1] == 1, f"a still image ships {cells.shape[1]} frames a cell, not 1")
    front_end = tokenizer.front_end(EMBED_DIM, pretrained_weight())
    repeated = cells.expand(-1, frames_per_cell(tokenizer), -1, -1, -1)
    error = relative_error(front_end(cells), front_end(repeated))
    text = f"relative error {error:.1e}"
    expect(error <= FLOAT32_TOLERANCE, f"{text}; expected at most {FLOAT32_TOLERANCE:.0e}")
    return text


def check_gradients(tokenizer: VisualTokenizer) -> str:
    """Every kept column of the weight is trained, and nothing else asks for a gradient."""
    front_end = tokenizer.front_end(EMBED_DIM, pretrained_weight())
    _, clip = _still_and_clip(tokenizer)
    (front_end(clip) ** 2).sum().backward()
    for name, parameter in front_end.named_parameters():
        expect(parameter.grad is not None, f"`{name}` gets no gradient")
    gradient = front_end.weight.grad
    assert gradient is not None
    reached = gradient.abs().sum(0).flatten() > 0
    text = f"{int(reached.sum())} of {len(reached)} columns"
    expect(bool(reached.all()), f"only {text} get a gradient")
    return text


def check_determinism(tokenizer: VisualTokenizer) -> str:
    """The same image gives the same cells, and a cell's output does not depend on its batch."""
    image = clip_of(90, 130, 1)
    (plan, first), (again, second) = (prepared(tokenizer, image) for _ in range(2))
    expect(plan == again and torch.equal(first, second), "a second pass gives other cells")
    front_end = tokenizer.front_end(EMBED_DIM, pretrained_weight())
    together = front_end(first)
    order = torch.randperm(len(first), generator=torch.Generator().manual_seed(0))
    shuffled = torch.empty_like(together)
    shuffled[order] = torch.cat([front_end(part) for part in first[order].split(3)])
    error = relative_error(shuffled, together)
    expect(error <= FLOAT32_TOLERANCE, f"relative error {error:.1e} between batch sizes or orders")
    return f"relative error {error:.1e} between batches"


def check_state(tokenizer: VisualTokenizer) -> str:
    """A saved and loaded front end computes the same, statistics included."""
    front_end = _moved(tokenizer.front_end(EMBED_DIM, pretrained_weight()))
    file = io.BytesIO()
    torch.save(front_end.state_dict(), file)
    file.seek(0)
    other = tokenizer.front_end(EMBED_DIM)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    for cells in _still_and_clip(tokenizer):
        same = torch.equal(other(cells), front_end(cells))
        expect(same, "the loaded front end computes something else")
    return ", ".join(sorted(state))


def check_precision(tokenizer: VisualTokenizer) -> str:
    """A cast to bf16 leaves the fixed half in float32 and costs no more than its rounding."""
    front_end = tokenizer.front_end(EMBED_DIM, pretrained_weight())
    cells, _ = _still_and_clip(tokenizer)
    exact = front_end(cells)
    low = copy.deepcopy(front_end).bfloat16()
    for name, buffer in low.named_buffers():
        expect(buffer.dtype == torch.float32, f"buffer `{name}` is {buffer.dtype}, not float32")
    output = low(cells)
    expect(output.dtype == low.weight.dtype, f"bf16 weights give {output.dtype}")
    error = relative_error(output, exact)
    text = f"bf16 relative error {error:.1e}"
    expect(error <= BFLOAT16_TOLERANCE, f"{text}; expected at most {BFLOAT16_TOLERANCE:.0e}")
    return text


def check_replicas(tokenizer: VisualTokenizer) -> str:
    """Ranks that build the module by themselves hold the same numbers, whatever their seeds."""
    replicas = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            replicas.append(tokenizer.front_end(EMBED_DIM, pretrained_weight()))
    cells, _ = _still_and_clip(tokenizer)
    gradients = []
    for replica in replicas:
        output = replica(cells)
        output.square().sum().backward()
        gradients.append([output, *(parameter.grad for parameter in replica.parameters())])
    same = all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    expect(same, "two replicas from one pretrained weight give different outputs or gradients")
    return "outputs and gradients bit-equal"


def check_export(tokenizer: VisualTokenizer) -> str:
    """The trained front end folds into one convolution from raw RGB."""
    front_end = _moved(tokenizer.front_end(EMBED_DIM, pretrained_weight()))
    conv = fold(front_end)
    errors = []
    for cells in _still_and_clip(tokenizer):
        frames = cells.float().expand(-1, conv.kernel_size[0], -1, -1, -1)
        errors.append(relative_error(conv(frames.transpose(1, 2)).flatten(1), front_end(cells)))
    text = f"relative error {max(errors):.1e}"
    expect(max(errors) <= FLOAT32_TOLERANCE, f"{text}; expected at most {FLOAT32_TOLERANCE:.0e}")
    return text
