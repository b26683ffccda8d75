"""Packs from shards to batches: bounds, damaged samples, tokenizers that depend on the content,
and the loader's place.
"""

from __future__ import annotations

import dataclasses
import io
from collections import Counter

import pytest
from megatron.energon import SkipSample, WorkerConfig, get_savable_loader, get_train_dataset
from megatron.energon.errors import FatalSampleError
from PIL import Image
from sample_chats import ROWS, crude
from transformers import AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog, count_rejects
from dct_vl.training.data.task_encoder import ChatPackEncoder

LENGTH = 256


@pytest.fixture(scope="module")
def make_encoder(tiny_model):
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model))

    def make(tokenizer="pixel", folder=None, max_patches=4 * LENGTH) -> ChatPackEncoder:
        return ChatPackEncoder(
            inputs=InputSpec(
                chat=chat,
                visual=build_tokenizer(tokenizer, min_pixels=56 * 56, max_pixels=112 * 112),
                seq_length=LENGTH,
            ),
            max_patches=max_patches,
            rejects=RejectLog(folder, "nowhere"),
        )

    return make


def make_loader(encoder, shards, num_workers):
    config = WorkerConfig(rank=0, world_size=1, num_workers=num_workers, seed_offset=5)
    dataset = get_train_dataset(
        shards,
        split_part="train",
        worker_config=config,
        batch_size=2,
        shuffle_buffer_size=10,
        max_samples_per_sequence=5,
        packing_buffer_size=20,
        task_encoder=encoder,
    )
    return get_savable_loader(dataset, watchdog_timeout_seconds=None)


def keys_of(batches, count):
    return [next(batches).sample_keys for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_restored_loader_delivers_the_same_packs(num_workers, make_encoder, shards):
    """Saved while packs of the buffer are still to come, and more than one buffer later."""
    loader = make_loader(make_encoder(), shards, num_workers)
    batches = iter(loader)
    before = keys_of(batches, 3)
    state = loader.save_state_rank()
    after = keys_of(batches, 5)
    assert all(len(keys) > 2 for keys in before)
    seen = Counter(key for keys in before + after[:1] for key in keys)
    assert set(seen.values()) == {1}

    restored = make_loader(make_encoder(), shards, num_workers)
    restored.restore_state_rank(state)
    assert keys_of(iter(restored), 5) == after


def test_a_damaged_sample_leaves_padding_behind(make_encoder, tmp_path):
    encoder = make_encoder(folder=tmp_path)
    planned = [encoder.preencode_sample(crude(row, f"k{n}")) for n, row in enumerate(ROWS)]
    broken = dataclasses.replace(planned[2], images=(planned[2].images[0][:-60],))
    (pack,) = encoder.select_samples_to_pack([planned[0], planned[1], broken])
    encoded = []
    for sample in pack:
        try:
            encoded.append(encoder.postencode_sample(sample))
        except SkipSample:
            assert sample is broken
    batch = encoder.batch([encoder.pack_selected_samples(encoded)])
    assert batch.sample_keys == ("k0", "k1")
    assert batch.input_ids.shape == (1, LENGTH)
    assert batch.num_padding_tokens == LENGTH - sum(s.num_tokens for s in planned[:2])
    assert count_rejects(tmp_path) == {"undecodable": 1}


def test_a_pack_without_any_sample_is_skipped(make_encoder):
    with pytest.raises(SkipSample):
        make_encoder().pack_selected_samples([])


def test_a_sample_of_too_many_patches_is_rejected_by_name(make_encoder, tmp_path):
    encoder = make_encoder(folder=tmp_path, max_patches=40)
    with pytest.raises(SkipSample):
        encoder.preencode_sample(crude(ROWS[0], "many"))
    assert encoder.preencode_sample(crude(ROWS[2], "few")).num_patches == 16
    assert count_rejects(tmp_path) == {"too_many_patches": 1}


def test_samples_of_too_many_patches_in_a_row_stop_the_run(make_encoder):
    """Each of them was planned well before its patches were counted."""
    encoder = make_encoder(max_patches=40)
    encoder.rejects.max_in_a_row = 3
    for count in range(3):
        with pytest.raises(SkipSample if count < 2 else FatalSampleError, match="too_many_patches"):
            encoder.preencode_sample(crude(ROWS[0], "many"))


def test_numbers_that_depend_on_the_content_are_known_before_packing(make_encoder):
    """The plan's upper bound would leave most of a row of such samples empty."""
    encoder = make_encoder("adaptive_rms4")
    assert not encoder.inputs.visual.counts_from_header
    sample = crude(ROWS[2], "grey")
    buffer = io.BytesIO()
    Image.new("L", (112, 112), 90).save(buffer, "PNG")
    sample.images = (buffer.getvalue(),)
    planned = encoder.preencode_sample(sample)
    encoded = encoder.postencode_sample(planned)
    assert planned.num_tokens == len(encoded.input_ids) == len(planned.input_ids) - 15
    assert planned.num_patches == len(encoded.visual.cells) == 4
    assert sum(plan.num_cells for plan in planned.plans) == 64
    batch = encoder.batch([encoder.pack_selected_samples([encoded, encoded])])
    assert batch.segments.cu_seqlens.tolist() == [0, *[planned.num_tokens * n for n in (1, 2)], 256]
