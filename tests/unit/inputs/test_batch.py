"""Pictures placed into ids, and rows padded into batches."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from sample_chats import ROWS, crude
from transformers import AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_tokenizer.registry import list_presets
from dct_vl.inputs.batch import Segments
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX, ChatTokenizer, TokenizedChat, place_media
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.training.data.task_encoder import ChatTaskEncoder

PAD = 7
BOUNDS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
TEXT_ONLY = ROWS[1]


def chat_of(ids: list[int], answers: set[int]) -> TokenizedChat:
    mask = tuple(place in answers for place in range(len(ids)))
    return TokenizedChat(input_ids=tuple(ids), is_answer=mask, media=("image",) * ids.count(PAD))


@pytest.fixture(scope="module")
def make_encoder(tiny_model):
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model))

    def make(preset: str = "pixel", **options) -> ChatTaskEncoder:
        return ChatTaskEncoder(
            inputs=InputSpec(
                chat=chat,
                visual=build_tokenizer(preset, **BOUNDS),
                seq_length=512,
            ),
            rejects=RejectLog(None, "nowhere"),
            **options,
        )

    return make


def encode(encoder: ChatTaskEncoder, *rows) -> list:
    return [
        encoder.postencode_sample(encoder.preencode_sample(crude(row, f"k{number}")))
        for number, row in enumerate(rows)
    ]


def test_placeholders_grow_and_text_goes_on_after_the_picture():
    visual = build_tokenizer("pixel", min_pixels=784, max_pixels=10**6)
    plans = [visual.plan(56, 84), visual.plan(28, 28)]
    ids, answer, positions = place_media(chat_of([1, PAD, 2, PAD, 3, 4], {4, 5}), [PAD], plans)
    assert ids.tolist() == [1, *[VISUAL_TOKEN_INDEX] * 6, 2, VISUAL_TOKEN_INDEX, 3, 4]
    assert np.flatnonzero(answer).tolist() == [9, 10]
    time, row, column = positions.tolist()
    # a grid of 2 × 3 starts at 1; the text goes on after its largest id, 3
    assert time == [0, *[1] * 6, 4, 5, 6, 7]
    assert row == [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7]
    assert column == [0, 1, 2, 3, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [0, 2])
def test_plans_and_placeholders_must_agree(count):
    plans = [build_tokenizer("pixel").plan(56, 56)] * count
    with pytest.raises(ValueError, match=f"1 placeholders for {count} planned"):
        place_media(chat_of([1, PAD], {1}), [PAD], plans)


def test_the_visual_index_is_the_models():
    from dct_vl.compat import activate

    activate()
    from dct_vl.model.families.qwen_vl import model as mcore

    assert mcore.VISUAL_TOKEN_INDEX == VISUAL_TOKEN_INDEX


def test_labels_are_shifted_and_padding_carries_nothing(make_encoder):
    encoder = make_encoder(pad_multiple=16)
    samples = encode(encoder, *ROWS)
    batch = encoder.batch(samples)
    longest = max(len(s.input_ids) for s in samples)
    width = -(-longest // 16) * 16
    assert batch.input_ids.shape == batch.labels.shape == (3, width)
    assert batch.sample_keys == ("k0", "k1", "k2")
    assert batch.num_visual_tokens == sum(int((s.input_ids < 0).sum()) for s in samples) > 0
    assert batch.num_text_tokens == sum(int((s.input_ids >= 0).sum()) for s in samples)
    kinds = (batch.num_text_tokens, batch.num_visual_tokens, batch.num_padding_tokens)
    assert sum(kinds) == 3 * width
    for row, sample in enumerate(samples):
        size = len(sample.input_ids)
        assert batch.input_ids[row, :size].tolist() == sample.input_ids.tolist()
        assert not batch.input_ids[row, size:].any()
        assert not batch.loss_mask[row, size - 1 :].any()
        scored = batch.loss_mask[row].nonzero().flatten()
        assert (scored + 1).tolist() == np.flatnonzero(sample.is_answer).tolist()
        next_ids = batch.input_ids[row][scored + 1]
        assert torch.equal(batch.labels[row][scored], next_ids)
    assert (batch.labels >= 0).all(), "a negative label breaks the loss even where it is masked"


def test_fixed_length_and_what_does_not_fit(make_encoder):
    samples = encode(make_encoder(), *ROWS)
    assert make_encoder(pad_to=200).batch(samples).input_ids.shape == (3, 200)
    longest = max(len(s.input_ids) for s in samples)
    with pytest.raises(ValueError, match=f"a sample of {longest} tokens .* batch of 40"):
        make_encoder(pad_to=40).batch(samples)


def test_pictures_of_a_batch_follow_each_other(make_encoder):
    encoder = make_encoder()
    one, two = encode(encoder, ROWS[0], ROWS[2])
    batch = encoder.batch([one, two])
    assert torch.equal(batch.visual.cells, torch.cat([one.visual.cells, two.visual.cells]))
    boundaries = batch.visual.segments.cu_seqlens.tolist()
    lengths = [*one.visual.vit_segments, *two.visual.vit_segments]
    assert len(lengths) == 3, "one segment a picture"
    assert np.diff(boundaries).tolist() == lengths
    assert boundaries[0] == 0
    assert boundaries[-1] == len(batch.visual.cells) == len(batch.visual.positions)


@pytest.mark.parametrize("preset", list_presets())
def test_every_tokenizer_learns_from_pictures_and_text(preset, make_encoder, build_module):
    """A step of each preset: finite loss, gradients in all parts, of the front end too."""
    encoder = make_encoder(preset)
    module = build_module(preset)
    batch = encoder.batch(encode(encoder, *ROWS))
    per_token, mask = module(batch)
    loss = (per_token * mask).sum() / mask.sum()
    assert 3 < loss.item() < 15
    module.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
    for part in (module.vision_model.front_end, module.vision_projection, module.language_model):
        assert any(p.grad.abs().max() > 0 for p in part.parameters())


def test_a_batch_of_text_gives_the_vision_tower_zero_gradients(make_encoder, build_module):
    """Present, so that data-parallel ranks agree on what to reduce; zero, as nothing was seen."""
    encoder = make_encoder()
    module = build_module("pixel")
    batch = encoder.batch(encode(encoder, TEXT_ONLY, TEXT_ONLY))
    assert len(batch.visual.cells) > 0
    assert batch.num_visual_tokens == 0
    per_token, mask = module(batch)
    module.zero_grad(set_to_none=True)
    (per_token * mask).sum().backward()
    for part in (module.vision_model, module.vision_projection):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_a_batch_of_another_tokenizer_is_refused(make_encoder, build_module):
    encoder = make_encoder("dct28_420")
    batch = encoder.batch(encode(encoder, ROWS[2]))
    fine = make_encoder("pixel")
    other = fine.batch(encode(fine, ROWS[2]))
    visual = replace(other.visual, token_indices=batch.visual.token_indices)
    with pytest.raises(ValueError, match="was not made with this model's tokenizer"):
        build_module("pixel")(replace(batch, visual=visual))


def test_a_batch_comes_out_of_a_loader_process_and_goes_to_a_device(make_encoder):
    """Pickled, pinned and moved with all of its parts, but for what the host reads."""
    encoder = make_encoder()
    batch = encoder.batch(encode(encoder, *ROWS)).with_windows(8).with_answer_indices()
    batch = replace(batch, segments=Segments.of([batch.input_ids.numel()]))
    there = pickle.loads(pickle.dumps(batch)).to("meta")
    visual = there.visual
    moved = (
        *(there.input_ids, there.position_ids, there.segments.cu_seqlens, there.labels),
        *(there.loss_mask, there.answer_indices, visual.cells, visual.positions),
        *(visual.segments.cu_seqlens, visual.token_indices),
        *(visual.windows.order, visual.windows.segments.cu_seqlens),
    )
    assert all(tensor.is_meta for tensor in moved)
    assert visual.grids.tolist() == batch.visual.grids.tolist()
    assert len(list(there.tensors())) == len(moved) + 1
    assert there.segments.longest == batch.segments.longest
    assert there.sample_keys == batch.sample_keys
    assert batch.map_tensors(torch.zeros_like).input_ids.count_nonzero() == 0
    assert batch.input_ids.count_nonzero() > 0


def test_torchs_loader_pins_a_batch(make_encoder, monkeypatch):
    from torch.utils.data._utils.pin_memory import pin_memory

    encoder = make_encoder()
    batch = encoder.batch(encode(encoder, *ROWS))
    pinned = []

    def pin(tensor):
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    found = pin_memory(batch)
    assert len(pinned) == len(list(batch.tensors())) - 1
    assert found.visual.cells is not batch.visual.cells
    assert found.visual.grids is batch.visual.grids
