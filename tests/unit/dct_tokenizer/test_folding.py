"""One convolution against the front end that it replaces."""

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from dct_tokenizer import build_tokenizer, fold, list_presets


def trained(tokenizer, pretrained):
    """A front end away from its start, as after training."""
    front_end = tokenizer.front_end(48, pretrained)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in front_end.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return front_end


def volume(cells: torch.Tensor, frames: int) -> torch.Tensor:
    """float32 (N, 3, frames, B, B) in 0..255."""
    return cells.float().expand(-1, frames, -1, -1, -1).transpose(1, 2)


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("num_frames", [1, 16])
def test_folded_convolution_from_raw_rgb(preset, num_frames, clip, pretrained):
    tokenizer = build_tokenizer(preset, min_pixels=1)
    if preset == "pixel_downscale" or tokenizer.content_dependent:
        num_frames = 1
    frames = clip[:num_frames]
    plan = tokenizer.refine(frames, tokenizer.plan(*clip.shape[1:3], num_frames))
    cells = tokenizer.cells(frames, plan)
    front_end = trained(tokenizer, pretrained)
    conv = fold(front_end)
    with torch.no_grad():
        folded = conv(volume(cells, conv.kernel_size[0])).flatten(1)
        exact = front_end(cells)
    torch.testing.assert_close(folded, exact, atol=1e-5 * exact.abs().max().item(), rtol=1e-5)
    if num_frames == 1:
        with torch.no_grad():
            still = fold(front_end, still=True)(volume(cells, 1)).flatten(1)
        torch.testing.assert_close(still, exact, atol=1e-5 * exact.abs().max().item(), rtol=1e-5)


def test_the_convolution_slides_over_a_whole_picture(photos, pretrained):
    tokenizer = build_tokenizer("dct28_420")
    picture = photos[0][None, :392, :616]
    plan = tokenizer.plan(392, 616)
    front_end = trained(tokenizer, pretrained)
    image = torch.from_numpy(picture.copy()).permute(3, 0, 1, 2)[None].float()
    with torch.no_grad():
        grid = fold(front_end, still=True)(image)[0, :, 0]
        rows = front_end(tokenizer.cells(picture, plan))
    positions = torch.tensor(plan.vit_positions).long()
    expected = grid[:, positions[:, 0], positions[:, 1]].T
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("preset", ["pixel", "dct14"])
def test_stock_sized_presets_fold_into_the_stock_patch_embedding(preset, photos, pretrained):
    front_end = trained(build_tokenizer(preset), pretrained)
    conv = fold(front_end, inputs="normalised")
    assert conv.bias is None
    embed = PatchEmbed(embed_dim=48)
    embed.proj.load_state_dict(conv.state_dict())
    stock = build_tokenizer("pixel")
    plan = stock.plan(140, 196)
    cells = stock.cells(np.ascontiguousarray(photos[0][None, :140, :196]), plan)
    with torch.no_grad():
        torch.testing.assert_close(
            embed(stock.encode(cells)), front_end(cells), atol=1e-4, rtol=1e-4
        )
