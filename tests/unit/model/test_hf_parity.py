"""Logits, losses and positions equal transformers 4.51.3's on the same folder and pictures.

Our side goes from shard bytes through the task encoder; the other side through AutoProcessor.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sample_chats import ROWS, crude, messages, pictures
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_vl.inputs.batch import Batch
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX, ChatTokenizer
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.training.data.task_encoder import ChatTaskEncoder

#: the largest picture is shrunk, the smallest one is enlarged
BOUNDS = {"min_pixels": 4 * 28 * 28, "max_pixels": 12 * 28 * 28}
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What transformers makes of `ROWS`."""

    inputs: Any
    labels: torch.Tensor
    logits: torch.Tensor
    position_ids: torch.Tensor
    #: mean loss of each row, run alone and without padding
    losses: list[float]


def answer_labels(input_ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Labels by search: what follows `<|im_start|>assistant\\n`, up to and with `<|im_end|>`."""
    start = tokenizer("<|im_start|>assistant\n")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels = torch.full_like(input_ids, IGNORED)
    for row, ids in enumerate(input_ids.tolist()):
        for place in range(len(ids)):
            if ids[place : place + len(start)] == start:
                first = place + len(start)
                last = ids.index(end, first)
                labels[row, first : last + 1] = input_ids[row, first : last + 1]
    return labels


@pytest.fixture(scope="module", params=["tiny_model", "tiny_model_25"])
def folder(request) -> Path:
    """Of Qwen2-VL, and of Qwen2.5-VL."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def hf_model(folder) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def reference(folder, hf_model) -> Reference:
    processor = AutoProcessor.from_pretrained(folder, use_fast=False, **BOUNDS)
    texts = [processor.apply_chat_template(messages(row), tokenize=False) for row in ROWS]
    images = [[Image.open(io.BytesIO(data)) for data in pictures(row)] for row in ROWS]

    def prepare(rows: list[int]) -> Any:
        flat = [image for row in rows for image in images[row]]
        return processor(
            text=[texts[row] for row in rows],
            images=flat or None,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )

    everything = list(range(len(ROWS)))
    inputs = prepare(everything)
    labels = answer_labels(inputs["input_ids"], processor.tokenizer)
    losses = []
    with torch.no_grad():
        for row in everything:
            alone = prepare([row])
            wanted = answer_labels(alone["input_ids"], processor.tokenizer)
            losses.append(hf_model(**alone, labels=wanted).loss.item())
        logits = hf_model(**inputs).logits
        positions, _ = hf_model.get_rope_index(
            inputs["input_ids"], inputs["image_grid_thw"], attention_mask=inputs["attention_mask"]
        )
    return Reference(
        inputs=inputs, labels=labels, logits=logits, position_ids=positions, losses=losses
    )


@pytest.fixture(scope="module")
def make_batch(folder):
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(folder))

    def make(preset: str, rows: tuple[dict[str, Any], ...] = ROWS, **bounds: int) -> Batch:
        encoder = ChatTaskEncoder(
            inputs=InputSpec(
                chat=chat,
                visual=build_tokenizer(preset, **(bounds or BOUNDS)),
                seq_length=512,
            ),
            rejects=RejectLog(None, "nowhere"),
        )
        return encoder.batch(
            [encoder.postencode_sample(encoder.preencode_sample(crude(row))) for row in rows]
        )

    return make


def run(module: Any, batch: Batch, *, with_labels: bool = False) -> Any:
    with torch.no_grad():
        return module(batch if with_labels else replace(batch, labels=None))


def test_ids_masks_and_positions_equal_the_processors(make_batch, reference, hf_model):
    batch = make_batch("pixel")
    ids = reference.inputs["input_ids"]
    there = reference.inputs["attention_mask"].bool()
    lengths = there.sum(1).tolist()
    assert len(set(lengths)) == len(ROWS), "the rows must differ in length for padding to matter"
    width = ids.shape[1]
    ours = batch.input_ids.clone()
    ours[ours == VISUAL_TOKEN_INDEX] = hf_model.config.image_token_id
    assert torch.equal(ours[:, :width][there], ids[there])
    assert not batch.loss_mask[:, width:].any()
    wanted = reference.labels[:, 1:]
    assert torch.equal(batch.loss_mask[:, : width - 1].bool(), wanted != IGNORED)
    scored = wanted != IGNORED
    assert torch.equal(batch.labels[:, : width - 1][scored], wanted[scored])
    assert torch.equal(batch.position_ids[:, :, :width][:, there], reference.position_ids[:, there])


@pytest.mark.parametrize("preset", ["pixel", "dct14"])
def test_logits_and_losses_equal_transformers(preset, folder, build_module, make_batch, reference):
    module = build_module(preset, folder)
    batch = make_batch(preset)
    there = reference.inputs["attention_mask"].bool()
    logits = run(module, batch)[:, : there.shape[1]]
    assert reference.logits[there].std() > 0.5, "flat logits would prove nothing"
    assert (logits[there] - reference.logits[there]).abs().max() < 1e-5
    per_token, mask = run(module, batch, with_labels=True)
    losses = (per_token * mask).sum(1) / mask.sum(1)
    assert losses.tolist() == pytest.approx(reference.losses, abs=1e-5)


def test_pictures_matter(folder, build_module, make_batch, reference):
    """The comparison above would pass on a model that never looks."""
    module = build_module("pixel", folder)
    batch = make_batch("pixel")
    before = run(module, batch)
    batch = replace(batch, visual=replace(batch.visual, cells=255 - batch.visual.cells))
    changed = (run(module, batch) - before).abs().amax(-1)
    assert changed[0, batch.input_ids[0].argmin() :].max() > 0.01
    assert changed[1].max() == 0, "the row without pictures must not see the others'"


def test_windows_matter(tiny_model_25, build_module):
    """Pictures of several windows with rests at their edges; padding; rows in one batch."""
    rows = [
        {
            "turns": [("human", "<image>Which? <image>"), ("gpt", "b")],
            "sizes": [(300, 250), (60, 500)],
        },
        {"turns": [("human", "<image>What?"), ("gpt", "c")], "sizes": [(230, 120)]},
    ]
    processor = AutoProcessor.from_pretrained(tiny_model_25, use_fast=False)
    inputs = processor(
        text=[processor.apply_chat_template(messages(row), tokenize=False) for row in rows],
        images=[Image.open(io.BytesIO(data)) for row in rows for data in pictures(row)],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_25).eval()
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model_25))
    encoder = ChatTaskEncoder(
        inputs=InputSpec(
            chat=chat,
            visual=build_tokenizer("pixel"),
            seq_length=512,
        ),
        rejects=RejectLog(None, "nowhere"),
    )
    batch = encoder.batch(
        [encoder.postencode_sample(encoder.preencode_sample(crude(r))) for r in rows]
    )
    module = build_module("pixel", tiny_model_25)
    there = inputs["attention_mask"].bool()
    with torch.no_grad():
        wanted = model(**inputs).logits[there]
    assert (run(module, batch)[:, : there.shape[1]][there] - wanted).abs().max() < 1e-5
    given = batch.with_windows(module.config.vision_transformer_config.window_side)
    with torch.no_grad():
        found = run(module, given)[:, : there.shape[1]][there]
        assert (found - wanted).abs().max() < 1e-5
        # bounds that a kernel on CUDA relies on: of windows, of the largest slice
        bounds = [
            layer.self_attention.core_attention.max_segment_length
            for layer in module.vision_model.decoder.layers
        ]
        assert bounds[0] == given.visual.windows.segments.longest == 64
        assert bounds[1] >= batch.visual.segments.longest > 64
        # windows of one token, then none: the comparison above must not be blind to them
        for side in (2, 1000):
            other = run(module, batch.with_windows(side))[:, : there.shape[1]][there]
            assert (other - wanted).abs().max() > 1e-3


SQUARES = ({**ROWS[0], "sizes": [(112, 112), (168, 56)]}, ROWS[1])


def test_dct28_420_starts_as_its_low_pass_control(folder, build_module, make_batch):
    """Detail columns start at zero, so that both see the same until the first step."""
    bounds = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
    full, control = (make_batch(name, SQUARES, **bounds) for name in ("dct28_420", "dct28_lp"))
    modules = [build_module(preset, folder) for preset in ("dct28_420", "dct28_lp")]
    difference = run(modules[0], full) - run(modules[1], control)
    assert difference.abs().max() < 1e-5


def test_dct28_420_has_a_quarter_of_the_visual_tokens(make_batch):
    """Counted in the batch: in the ids, in the tally, and in the cells that are shipped."""
    bounds = {"min_pixels": 56 * 56, "max_pixels": 168 * 168}
    fine, coarse = (make_batch(name, SQUARES, **bounds) for name in ("pixel", "dct28_420"))
    counts = [int((b.input_ids == VISUAL_TOKEN_INDEX).sum()) for b in (fine, coarse)]
    assert counts == [16 + 12, 4 + 3]
    assert [b.num_visual_tokens for b in (fine, coarse)] == counts
    assert [len(b.visual.cells) for b in (fine, coarse)] == [4 * c for c in counts]
    assert fine.num_text_tokens == coarse.num_text_tokens
