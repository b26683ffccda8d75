"""The pixel tokenizer against transformers' processor and patch embedding."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from dct_tokenizer import build_tokenizer
from dct_tokenizer.geometry import smart_resize

NUM_SIZES = 200


def random_case(rng: np.random.Generator, photos):
    """A crop of a photo stretched to a random size, and pixel bounds, extremes included."""
    aspect = 199 ** rng.uniform(-1, 1) if rng.random() < 0.3 else 4 ** rng.uniform(-1, 1)
    area = np.exp(rng.uniform(np.log(28 * 28), np.log(120_000)))
    height = max(28, int((area * aspect) ** 0.5))
    width = max(28, int((area / aspect) ** 0.5))
    low, high = sorted(np.exp(rng.uniform(np.log(784), np.log(80_000), 2)).astype(int))
    picture = Image.fromarray(photos[rng.integers(2)]).resize((width, height))
    return np.asarray(picture), int(low), int(high)


def test_cells_equal_the_processor_on_random_sizes(photos):
    rng = np.random.default_rng(11)
    compared = 0
    while compared < NUM_SIZES:
        picture, low, high = random_case(rng, photos)
        aspect = max(picture.shape[:2]) / min(picture.shape[:2])
        if aspect > 200 or high / 784 < aspect:
            continue  # transformers 4.51 fails or leaves no pixels there
        processor = Qwen2VLImageProcessor(min_pixels=low, max_pixels=high)
        theirs = processor(Image.fromarray(picture), return_tensors="np")
        tokenizer = build_tokenizer("pixel", min_pixels=low, max_pixels=high)
        plan = tokenizer.plan(*picture.shape[:2])
        assert plan.grid_thw == tuple(theirs["image_grid_thw"][0].tolist())
        values = tokenizer.encode(tokenizer.cells(picture[None], plan))
        np.testing.assert_allclose(values, theirs["pixel_values"], atol=1e-5, rtol=0)
        compared += 1


@pytest.mark.parametrize("num_frames", [2, 3, 6])
def test_clips_equal_the_processor_with_the_last_frame_repeated(clip, num_frames):
    frames = clip[:num_frames]
    bounds = {"min_pixels": 784, "max_pixels": 12_000}
    processor = Qwen2VLImageProcessor(**bounds)
    theirs = processor(images=None, videos=[list(frames)], return_tensors="pt")
    tokenizer = build_tokenizer("pixel", **bounds)
    plan = tokenizer.plan(*frames.shape[1:3], num_frames)
    assert plan.grid_thw == tuple(theirs["video_grid_thw"][0].tolist())
    values = tokenizer.encode(tokenizer.cells(torch.from_numpy(frames), plan))
    torch.testing.assert_close(values, theirs["pixel_values_videos"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 4])
def test_front_end_equals_the_patch_embedding(clip, pretrained, num_frames):
    embed = PatchEmbed(embed_dim=48)
    embed.proj.weight.data.copy_(pretrained)
    tokenizer = build_tokenizer("pixel")
    plan = tokenizer.plan(*clip.shape[1:3], num_frames)
    cells = tokenizer.cells(clip[:num_frames], plan)
    front_end = tokenizer.front_end(48, embed.proj.weight)
    assert front_end.state_dict().keys() == {"weight"}
    torch.testing.assert_close(
        front_end(cells), embed(tokenizer.encode(cells)), atol=1e-5, rtol=1e-5
    )


def test_decode_returns_the_resized_pixels_exactly(photos):
    tokenizer = build_tokenizer("pixel", max_pixels=60_000)
    picture = photos[0]
    plan = tokenizer.plan(*picture.shape[:2])
    decoded = tokenizer.decode(tokenizer.encode(tokenizer.cells(picture[None], plan)), plan)
    size = smart_resize(*picture.shape[:2], factor=28, min_pixels=3136, max_pixels=60_000)
    assert (plan.height, plan.width) == size
    resized = Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC)
    assert np.array_equal(decoded[0], np.asarray(resized))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (np.zeros((56, 56, 3), np.uint8), "frame axis"),
        (np.zeros((1, 56, 56, 3), np.float32), "float32"),
        (np.zeros((3, 56, 56, 3), np.uint8), "3 frames for a plan of 1"),
    ],
)
def test_frames_of_another_shape_are_refused(frames, words):
    tokenizer = build_tokenizer("pixel")
    with pytest.raises(ValueError, match=words):
        tokenizer.cells(frames, tokenizer.plan(56, 56))
