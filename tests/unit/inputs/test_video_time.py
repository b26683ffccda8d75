"""Qwen2.5-VL counts the time of videos in parts of a second."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from sample_chats import picture
from sample_videos import noise_frames, video
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from data_prep.video_file import VideoHeader, read_header
from dct_tokenizer import build_tokenizer
from dct_tokenizer.families.adaptive import AdaptiveTokenizer
from dct_vl.inputs.cells import encode_visual
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.clips import VideoRules, make_clip
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.inputs.samples import CrudeChat
from dct_vl.training.data.task_encoder import ChatTaskEncoder

BOUNDS = {"min_pixels": 4 * 784, "max_pixels": 60 * 784}
RULES = VideoRules(fps=16, max_frames=14, **BOUNDS, total_pixels=10**7)
#: a second of video at 30 frames a second, and 6.2 seconds at 5
CLIPS = tuple(video(noise_frames(31, 150, 230), rate=rate) for rate in (30, 5))
PICTURE = picture(170, 200, 1)


def test_ids_and_logits_are_those_of_transformers(tiny_model_25, build_module):
    """Two clips and a picture, more than a window each; the times are no whole numbers."""
    processor = AutoProcessor.from_pretrained(tiny_model_25, use_fast=False, **BOUNDS)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model_25).eval()
    kinds = ("video", "image", "video")
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": "And?"}]
    videos, rates = [], []
    for data in CLIPS:
        header = read_header(data)
        count = RULES.num_frames(header.num_frames, header.duration)
        with av.open(io.BytesIO(data)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        places = np.linspace(0, len(frames) - 1, count).round().astype(int)
        videos.append([frames[place] for place in places])
        rates.append(count / header.duration)
    inputs = processor(
        text=[processor.apply_chat_template([{"role": "user", "content": content}])],
        images=[Image.open(io.BytesIO(PICTURE))],
        videos=videos,
        fps=rates,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(**inputs).logits
        positions, _ = model.get_rope_index(
            inputs["input_ids"],
            inputs["image_grid_thw"],
            inputs["video_grid_thw"],
            inputs["second_per_grid_ts"],
        )
    turns = [
        {"from": "human", "value": "<video><image><video>And?"},
        {"from": "gpt", "value": "yes"},
    ]
    encoder = ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model_25)),
            visual=build_tokenizer("pixel", **BOUNDS),
            video=RULES,
            ids_per_second=2.0,
            seq_length=2048,
        ),
        rejects=RejectLog(None, "nowhere"),
    )
    record = json.dumps({"conversations": turns}).encode()
    crude = CrudeChat(
        __key__="k", __restore_key__=(), record=record, images=(PICTURE,), videos=CLIPS
    )
    batch = encoder.batch([encoder.postencode_sample(encoder.preencode_sample(crude))])
    length = positions.shape[2]
    assert torch.equal(batch.position_ids[..., :length], positions)
    clips = inputs["input_ids"][0] == model.config.video_token_id
    assert set(positions[0, 0, clips].diff().abs().tolist()) >= {0, 1, 2}, "times in fractions"
    with torch.no_grad():
        found = build_module("pixel", tiny_model_25)(replace(batch, labels=None))
    assert (found[:, :length] - logits).abs().max() < 1e-5


SMALL = VideoRules(fps=2, min_pixels=4 * 784, max_pixels=4 * 784)
HEADER = VideoHeader(height=112, width=112, num_frames=80, duration=8.0)


@pytest.mark.parametrize("preset", ["pixel", "dct14_t4", "dct28_420_t8"])
def test_a_clip_spans_the_same_time_whatever_a_cell_spans(preset):
    clip = make_clip(HEADER, SMALL, 2.0)
    assert clip.fps == 2
    ids, extent = clip.plan(build_tokenizer(preset)).placed_ids()
    step = {"pixel": 2, "dct14_t4": 4, "dct28_420_t8": 8}[preset]
    assert sorted(set(ids[:, 0])) == list(range(0, 16, step))
    assert extent == 15


def test_fewer_frames_of_a_damaged_clip_keep_their_distance():
    clip = make_clip(HEADER, SMALL, 2.0)
    ids, extent = clip.plan(build_tokenizer("pixel"), 6).placed_ids()
    assert sorted(set(ids[:, 0])) == [0, 2, 4]
    assert extent == 5


def test_a_plan_that_is_made_anew_keeps_the_time_of_its_clip():
    class Forgetful(AdaptiveTokenizer):
        def refine(self, frames, plan):
            return replace(super().refine(frames, plan), time_scale=None)

    visual = Forgetful(name="forgetful", budget=0.5)
    plan = make_clip(HEADER, VideoRules(fps=1), 3.0).plan(visual)
    frames = np.random.default_rng(0).integers(0, 256, (8, 112, 112, 3), dtype=np.uint8)
    final = encode_visual(visual, [frames], [plan]).plans[0]
    assert sorted(set(final.placed_ids()[0][:, 0])) == [0, 6, 12, 18]


def test_a_pair_of_frames_is_an_id_where_time_does_not_count():
    plan = make_clip(HEADER, SMALL).plan(build_tokenizer("pixel"))
    ids, extent = plan.placed_ids()
    assert ids is plan.mrope_positions
    assert extent == plan.mrope_extent == 8


def test_a_video_that_does_not_say_how_long_it_is_gets_the_usual_rate():
    header = VideoHeader(height=112, width=112, num_frames=4, duration=0.0)
    assert make_clip(header, VideoRules(), 2.0).fps == 2
