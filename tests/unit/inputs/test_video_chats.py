"""Conversations with videos and pictures: order, positions, lengths, and what transformers does."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from megatron.energon import SkipSample
from PIL import Image
from sample_chats import picture
from sample_videos import FASTSTART, noise_frames, sound, video
from transformers import AutoProcessor, AutoTokenizer

from data_prep.schema import Turn
from data_prep.video_file import VideoHeader
from dct_tokenizer import build_tokenizer
from dct_vl.inputs.cells import join_cells
from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX, ChatTokenizer
from dct_vl.inputs.clips import VideoRules, make_clip, shorten_clips
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog, count_notes, count_rejects
from dct_vl.inputs.samples import CrudeChat, cook_chat
from dct_vl.training.data.task_encoder import ChatTaskEncoder

#: 64 × 96 frames are enlarged to six tokens of 28 × 28 at least
RULES = VideoRules(min_pixels=6 * 784, max_pixels=12 * 784, total_pixels=10**6)
BOUNDS = {"min_pixels": 4 * 784, "max_pixels": 12 * 784}
#: 31 frames, 8 of them at 8 frames a second
CLIP = video(noise_frames(31))
PICTURE = picture(84, 112, 1)
TURNS = [
    ("human", "Watch <video> and look <image>"),
    ("gpt", "both seen"),
    ("human", "<video>\nAgain?"),
    ("gpt", "yes"),
]


@pytest.fixture(scope="module")
def chat(tiny_model):
    return ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model))


@pytest.fixture
def make_encoder(chat, tmp_path):
    def make(
        preset: str = "pixel", rules: VideoRules = RULES, seq_length: int = 512
    ) -> ChatTaskEncoder:
        return ChatTaskEncoder(
            inputs=InputSpec(
                chat=chat,
                visual=build_tokenizer(preset, **BOUNDS),
                video=rules,
                seq_length=seq_length,
            ),
            rejects=RejectLog(tmp_path, "DATA"),
        )

    return make


def sample(turns=None, images=(PICTURE,), videos=(CLIP, CLIP)) -> CrudeChat:
    said = [{"from": who, "value": text} for who, text in turns or TURNS]
    record = json.dumps({"conversations": said}).encode()
    parts = {f"{i}.jpg": data for i, data in enumerate(images)}
    parts |= {f"{i}.mp4": data for i, data in enumerate(videos)}
    keys = {"__key__": "k", "__restore_key__": (), "__subflavors__": {}, "__sources__": ()}
    return cook_chat({"json": record, **parts, **keys})


def encode(encoder: ChatTaskEncoder, crude: CrudeChat):
    return encoder.postencode_sample(encoder.preencode_sample(crude))


def decoded(data: bytes, count: int) -> list[np.ndarray]:
    """The chosen frames by PyAV alone, from the start, all of them held."""
    with av.open(io.BytesIO(data)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]


@pytest.fixture(scope="module")
def reference(tiny_model, hf_model):
    """What transformers makes of the same frames: inputs, positions, logits."""
    count = RULES.num_frames(31, 31 / 30)
    processor = AutoProcessor.from_pretrained(tiny_model, use_fast=False, **BOUNDS)
    roles = {"human": "user", "gpt": "assistant"}
    kinds = {"<video>": "video", "<image>": "image"}
    messages = []
    for who, text in TURNS:
        pieces = text.replace("<", "\0<").replace(">", ">\0").split("\0")
        content = [
            {"type": kinds[p]} if p in kinds else {"type": "text", "text": p.strip("\n")}
            for p in pieces
            if p.strip("\n")
        ]
        messages.append({"role": roles[who], "content": content})
    frames = decoded(CLIP, count)
    low, high = RULES.frame_bounds(count)
    videos = processor.image_processor(
        images=None, videos=[frames, frames], min_pixels=low, max_pixels=high, return_tensors="pt"
    )
    image = Image.open(io.BytesIO(PICTURE))
    images = processor.image_processor(images=[image], return_tensors="pt")
    text = processor.apply_chat_template(messages, tokenize=False)
    for pad, grids in (
        ("<|image_pad|>", images["image_grid_thw"]),
        ("<|video_pad|>", videos["video_grid_thw"]),
    ):
        for grid in grids:
            text = text.replace(pad, "<|held|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|held|>", pad)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
    inputs = {"input_ids": ids, **images, **videos}
    with torch.no_grad():
        positions, _ = hf_model.get_rope_index(
            ids, images["image_grid_thw"], videos["video_grid_thw"]
        )
        logits = hf_model(**inputs).logits
    return inputs, positions, logits


def test_ids_positions_and_pixels_are_those_of_transformers(make_encoder, chat, reference):
    inputs, positions, _ = reference
    encoder = make_encoder()
    found = encode(encoder, sample())
    ids = inputs["input_ids"][0].numpy()
    ours = np.where(found.input_ids == VISUAL_TOKEN_INDEX, ids, found.input_ids)
    np.testing.assert_array_equal(ours, ids)
    pads = np.isin(ids, chat.pad_ids)
    np.testing.assert_array_equal(found.input_ids == VISUAL_TOKEN_INDEX, pads)
    np.testing.assert_array_equal(found.position_ids, positions[:, 0])
    # in the conversation the picture stands between the videos
    half = len(inputs["pixel_values_videos"]) // 2
    theirs = torch.cat(
        [
            inputs["pixel_values_videos"][:half],
            inputs["pixel_values"],
            inputs["pixel_values_videos"][half:],
        ]
    )
    values = encoder.inputs.visual.encode(found.visual.cells)
    torch.testing.assert_close(values, theirs, atol=1e-5, rtol=0)


def test_logits_are_those_of_transformers(make_encoder, build_module, reference):
    _, _, logits = reference
    encoder = make_encoder()
    batch = encoder.batch([encode(encoder, sample())])
    with torch.no_grad():
        ours = build_module("pixel")(replace(batch, labels=None))
    assert (ours[:, : logits.shape[1]] - logits).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("preset", "frames_per_cell", "cell"),
    [("pixel", 2, 14), ("dct14_t4", 4, 14), ("dct14_t16", 16, 14), ("dct28_420_t8", 8, 28)],
)
def test_temporal_presets_keep_the_time_scale(
    make_encoder, build_module, preset, frames_per_cell, cell
):
    """Temporal ids go up by T / 2; a step reaches every part through a mixed batch."""
    rules = VideoRules(fps=16, min_pixels=4 * 56 * 56, max_pixels=4 * 56 * 56)
    encoder = make_encoder(preset, rules)
    found = encode(encoder, sample())
    (clip, still, _) = found.visual.plans
    slices = -(-16 // frames_per_cell)
    assert clip.grid_thw[0] == slices
    times = np.unique(clip.mrope_positions[:, 0])
    assert times.tolist() == [i * frames_per_cell // 2 for i in range(slices)]
    assert still.grid_thw[0] == 1
    assert found.visual.cells.shape[1:] == (frames_per_cell, 3, cell, cell)
    text_only = encode(encoder, sample([("human", "a"), ("gpt", "b")], (), ()))
    batch = encoder.batch([found, text_only])
    module = build_module(preset)
    per_token, mask = module(batch)
    module.zero_grad(set_to_none=True)
    (per_token * mask).sum().backward()
    assert module.vision_model.front_end.weight.grad.abs().max() > 0


def test_a_picture_beside_a_video_embeds_as_alone():
    for preset in ("pixel", "dct28_420_t8"):
        visual = build_tokenizer(preset)
        pixels = noise_frames(9, 112, 112)
        still = visual.cells(np.stack(pixels[:1]), visual.plan(112, 112))
        clip = visual.cells(np.stack(pixels), visual.plan(112, 112, 9))
        joined = join_cells([still, clip])
        assert len(joined) == len(still) + len(clip)
        front_end = visual.front_end(16)
        torch.testing.assert_close(front_end(joined)[: len(still)], front_end(still))
        assert join_cells([still, still]).shape[1] == 1, "pictures alone stay one frame"


def test_videos_without_marks_follow_pictures_without_marks(chat):
    turns = [("human", "Which?"), ("gpt", "this")]
    said = [Turn(role={"human": "user", "gpt": "assistant"}[w], text=t) for w, t in turns]
    assert chat.tokenize(said, 1, 2).media == ("image", "video", "video")
    text = chat.tokenizer.decode(chat.prompt(said[:1], 0, 1).input_ids)
    assert "<|vision_start|><|video_pad|><|vision_end|>Which?" in text


@pytest.mark.parametrize("seq_length", [150, 110])
def test_too_long_videos_lose_frames_first(make_encoder, tmp_path, seq_length):
    whole = make_encoder(rules=VideoRules(fps=16, min_pixels=4704, max_pixels=4704))
    short = make_encoder(rules=whole.inputs.video, seq_length=seq_length)
    planned = [encoder.preencode_sample(sample()) for encoder in (whole, short)]
    frames = [[clip.num_frames for clip in p.clips] for p in planned]
    assert frames[0] == [16, 16]
    assert 4 <= frames[1][0] < 16
    assert len(planned[1].input_ids) <= seq_length < len(planned[0].input_ids)
    # frames keep their size, and two more of each would not fit
    assert [p.width for p in planned[1].plans] == [p.width for p in planned[0].plans]
    assert len(planned[1].input_ids) + 2 * 6 > seq_length
    assert encode(short, sample()).visual.plans[0].frames == frames[1][0]
    assert count_notes(tmp_path) == {"video_shortened": 1}
    assert count_rejects(tmp_path) == {}


def test_videos_too_long_at_their_shortest_are_left_out(make_encoder, tmp_path):
    encoder = make_encoder(seq_length=60)
    with pytest.raises(SkipSample, match="k: too_long"):
        encoder.preencode_sample(sample())
    assert count_rejects(tmp_path) == {"too_long": 1}
    assert count_notes(tmp_path) == {}


def test_the_longest_videos_are_shortened_first():
    visual = build_tokenizer("pixel")
    rules = VideoRules(min_pixels=784, max_pixels=784)
    headers = [
        VideoHeader(height=28, width=28, num_frames=1000, duration=seconds)
        for seconds in (50, 4, 3)
    ]
    clips = [make_clip(header, rules) for header in headers]
    assert [c.num_frames for c in clips] == [100, 8, 6]

    def frames(max_tokens: int) -> list[int]:
        return [
            c.num_frames for c in shorten_clips(clips, visual, max_tokens=max_tokens, min_frames=4)
        ]

    assert frames(57) == [100, 8, 6]
    assert frames(56) == [98, 8, 6]
    assert frames(12) == [10, 8, 6]
    assert frames(10) == [6, 6, 6]
    assert frames(0) == [4, 4, 4]
    assert shorten_clips([], visual, max_tokens=-1, min_frames=4) == ()


def test_a_damaged_video_is_used_up_to_its_damage(make_encoder, tmp_path):
    whole = video(noise_frames(30), options=FASTSTART)
    encoder = make_encoder(rules=VideoRules(fps=10, min_pixels=4704, max_pixels=4704))
    crude = sample(TURNS[2:], (), (whole[: len(whole) // 2],))
    planned = encoder.preencode_sample(crude)
    found = encoder.postencode_sample(planned)
    num_frames = planned.plans[0].frames
    assert num_frames == 10
    (plan,) = found.visual.plans
    assert 2 <= plan.frames < num_frames
    assert len(found.visual.cells) == plan.num_cells
    assert (found.input_ids == VISUAL_TOKEN_INDEX).sum() == plan.num_llm_tokens
    assert len(found.input_ids) < len(planned.input_ids)
    assert found.position_ids.shape == (3, len(found.input_ids))
    expected = encode(encoder, sample(TURNS[2:], (), (whole,))).visual.cells
    complete = plan.frames // 2 - 1
    per_slice = plan.num_cells // plan.grid_thw[0]
    assert torch.equal(found.visual.cells[: complete * per_slice], expected[: complete * per_slice])
    assert count_notes(tmp_path) == {"video_damaged": 1}
    assert count_rejects(tmp_path) == {}


@pytest.mark.parametrize(
    ("turns", "videos", "reason"),
    [
        (TURNS[2:], (sound(),), "undecodable"),
        (TURNS[2:], (b"",), "undecodable"),
        (TURNS[2:], (CLIP, CLIP), "video_count"),
        (TURNS[2:], (video(noise_frames(2, 4, 1000)),), "unplannable"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_reason(
    make_encoder, tmp_path, turns, videos, reason
):
    with pytest.raises(SkipSample, match=f"k: {reason}"):
        make_encoder().preencode_sample(sample(turns, (), videos))
    assert count_rejects(tmp_path) == {reason: 1}


def test_a_control_that_has_no_counterpart_over_time_is_a_reject(make_encoder, tmp_path):
    encoder = make_encoder()
    visual = build_tokenizer("pixel_downscale", same_tokens_as="dct28_420_t8", **BOUNDS)
    encoder.inputs = replace(encoder.inputs, visual=visual)
    with pytest.raises(SkipSample, match="k: unplannable"):
        encoder.preencode_sample(sample())
