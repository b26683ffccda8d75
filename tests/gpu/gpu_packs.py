"""Conversations of every kind, the packs that they stand in, and a sample's loss.

Also used by `exact_losses.py`, in a process that sees no device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dct_vl.inference.loading import start_single_process  # activates dct_vl.compat

sys.path.append(str(Path(__file__).parents[1] / "helpers"))
from sample_chats import ROWS, crude, picture
from sample_videos import noise_frames, video
from transformers import AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_tokenizer.registry import preset_config
from dct_vl.inputs.batch import Batch, pack_batch
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.clips import VideoRules
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.inputs.samples import CrudeChat, EncodedChat
from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config
from dct_vl.model.families.qwen_vl.weights import load_hf_weights
from dct_vl.model.layer_specs import LayerSpecName
from dct_vl.training.data.task_encoder import ChatTaskEncoder

PRESETS = ("pixel", "dct28_420")
LENGTH = 384
#: samples: two pictures of different sizes, text, one picture, a video and a picture
TWO, TEXT, ONE, CLIP = range(4)
#: text first, then text in the middle; a picture of another size than the others comes last
PACKS = ((TEXT, TWO, CLIP, ONE), (ONE, CLIP, TEXT, TWO))
#: the samples of `PACKS` in order
ORDER = [number for pack in PACKS for number in pack]


def make_encoder(folder: Path, preset: str) -> ChatTaskEncoder:
    """Plans and cuts samples for a model's folder."""
    return ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(AutoTokenizer.from_pretrained(folder)),
            visual=build_tokenizer(preset, min_pixels=56 * 56, max_pixels=168 * 168),
            seq_length=LENGTH,
            video=VideoRules(min_pixels=6 * 784, max_pixels=12 * 784, total_pixels=10**6),
        ),
        rejects=RejectLog(None, "nowhere"),
    )


def make_samples(encoder: ChatTaskEncoder) -> list[EncodedChat]:
    """By `TWO`, `TEXT`, `ONE`, `CLIP`."""
    turns = [
        {"from": "human", "value": "Watch <video> and look <image>"},
        {"from": "gpt", "value": "Both are noise."},
    ]
    watched = CrudeChat(
        __key__="clip",
        __restore_key__=(),
        record=json.dumps({"conversations": turns}).encode(),
        images=(picture(112, 84, 1),),
        videos=(video(noise_frames(31)),),
    )
    found = [*(crude(row, f"k{number}") for number, row in enumerate(ROWS)), watched]
    return [encoder.postencode_sample(encoder.preencode_sample(one)) for one in found]


def build(
    folder: Path,
    preset: str,
    *,
    dtype: torch.dtype,
    layer_spec: LayerSpecName = "local",
    fused_layers: bool = False,
) -> Any:
    """The Megatron module of a tokenizer on this process's device, with the folder's weights."""
    start_single_process()
    options = ModelOptions(
        layer_spec=layer_spec,
        dtype=dtype,
        seq_length=LENGTH,
        tokenizer=preset_config(preset),
        fused_layers=fused_layers,
    )
    module = model_config(folder, options).configure_model(None)
    load_hf_weights(module, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return module.to(device=device, dtype=dtype).eval()


def padded(encoder: ChatTaskEncoder, samples: list[EncodedChat]) -> Batch:
    """The samples of `PACKS`, each in a row of its own."""
    return encoder.batch([samples[number] for number in ORDER])


def packed(encoder: ChatTaskEncoder, samples: list[EncodedChat]) -> Batch:
    """The samples of `PACKS` in two rows."""
    packs = [[samples[number] for number in pack] for pack in PACKS]
    return pack_batch(packs, visual=encoder.inputs.visual, length=LENGTH)


def losses(module: Any, batch: Batch) -> torch.Tensor:
    """Per token, (B, S) float, 0 where nothing is to be learnt."""
    per_token, mask = module(batch.to(next(module.parameters()).device))
    return per_token * mask


def means_of_padded(loss: torch.Tensor, samples: list[EncodedChat]) -> torch.Tensor:
    """Mean loss of the answer tokens of each sample, (samples of `PACKS`,)."""
    return loss.sum(1) / _num_answers(samples).to(loss.device)


def means_of_packed(loss: torch.Tensor, samples: list[EncodedChat]) -> torch.Tensor:
    """Likewise of packs."""
    sums = []
    for row, pack in enumerate(PACKS):
        sizes = [len(samples[number].input_ids) for number in pack]
        pieces = loss[row].split([*sizes, LENGTH - sum(sizes)])
        assert not pieces[-1].any(), "padding has a loss"
        sums += [piece.sum() for piece in pieces[:-1]]
    return torch.stack(sums) / _num_answers(samples).to(loss.device)


def _num_answers(samples: list[EncodedChat]) -> torch.Tensor:
    return torch.tensor([int(samples[number].is_answer[1:].sum()) for number in ORDER])
