"""A sample's loss is the same alone in a padded row and among strangers in a pack."""

from __future__ import annotations

import pytest
import torch
from sample_chats import ROWS, crude
from transformers import AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_vl.inputs.batch import pack_batch
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.training.data.task_encoder import ChatTaskEncoder

LENGTH = 256
#: rows of the samples of two packs: text first, text in the middle, one sample twice
PACKS = ((1, 0, 2), (2, 1, 2, 1))


@pytest.fixture(scope="module", params=["tiny_model", "tiny_model_25"])
def folder(request):
    """Of Qwen2-VL, and of Qwen2.5-VL, whose vision tower has windows within pictures."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def encoder(folder):
    return ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(AutoTokenizer.from_pretrained(folder)),
            visual=build_tokenizer("pixel", min_pixels=56 * 56, max_pixels=168 * 168),
            seq_length=LENGTH,
        ),
        rejects=RejectLog(None, "nowhere"),
    )


@pytest.fixture(scope="module")
def samples(encoder):
    return [
        encoder.postencode_sample(encoder.preencode_sample(crude(row, f"k{number}")))
        for number, row in enumerate(ROWS)
    ]


@pytest.fixture(scope="module")
def packed(encoder, samples):
    packs = [[samples[row] for row in pack] for pack in PACKS]
    return pack_batch(packs, visual=encoder.inputs.visual, length=LENGTH)


def run(module, batch):
    per_token, mask = module(batch)
    return per_token * mask


def sums_by_sample(loss, samples):
    """Summed losses of the samples of PACKS, in their order."""
    out = []
    for row, pack in enumerate(PACKS):
        sizes = [len(samples[number].input_ids) for number in pack]
        pieces = loss[row].split([*sizes, LENGTH - sum(sizes)])
        assert not pieces[-1].any(), "padding has a loss"
        out += [piece.sum() for piece in pieces[:-1]]
    return torch.stack(out)


def test_boundaries_cover_the_rows_and_positions_restart(packed, samples):
    sizes = [len(s.input_ids) for s in samples]
    first, second = ([sizes[n] for n in pack] for pack in PACKS)
    wanted = [*first, LENGTH - sum(first), *second, LENGTH - sum(second)]
    assert packed.segments.cu_seqlens.diff().tolist() == wanted
    assert packed.segments.cu_seqlens[0] == 0
    assert packed.segments.cu_seqlens.dtype == torch.int32
    assert packed.segments.longest == max(wanted)
    starts = packed.segments.cu_seqlens[:-1].long()
    assert not packed.position_ids.flatten(1)[:, starts].any()
    ends = packed.segments.cu_seqlens[1:].long() - 1
    assert not packed.loss_mask.flatten()[ends].any(), "a label of the sample behind it"
    assert packed.sample_keys == tuple(f"k{n}" for pack in PACKS for n in pack)
    assert packed.num_text_tokens + packed.num_visual_tokens == sum(first) + sum(second)
    assert packed.num_padding_tokens == 2 * LENGTH - sum(first) - sum(second)


def test_what_does_not_fit_a_row_is_refused(encoder, samples):
    with pytest.raises(ValueError, match="does not fit a row of 32"):
        pack_batch([samples], visual=encoder.inputs.visual, length=32)


def test_losses_and_gradients_equal_those_of_padded_rows(
    folder, encoder, samples, packed, build_module
):
    module = build_module("pixel", folder)
    order = [number for pack in PACKS for number in pack]
    padded = encoder.batch([samples[number] for number in order])
    alone = run(module, padded).sum(1)
    together = sums_by_sample(run(module, packed), samples)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5 * alone.max().item())

    gradients = []
    for loss in (alone, together):
        module.zero_grad(set_to_none=True)
        (loss.sum() / packed.loss_mask.sum()).backward()
        gradients.append({n: p.grad.clone() for n, p in module.named_parameters()})
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_a_sample_does_not_see_its_neighbours(folder, samples, packed, build_module):
    """Other text and pictures in the first place change nothing for the samples behind it."""
    module = build_module("pixel", folder)
    changed = packed.map_tensors(torch.clone)
    changed.input_ids[0, : len(samples[1].input_ids)] = 5
    cells = changed.visual.cells
    cells[-1] = 255 - cells[-1]  # the last picture of the second pack
    with torch.no_grad():
        before, after = (sums_by_sample(run(module, b), samples) for b in (packed, changed))
    same = before == after
    assert same.tolist() == [False, True, True, True, True, False, True]
