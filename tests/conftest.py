"""Shared inputs: a small prepared dataset and a tiny model, each made once a session.

Everything here runs on the CPU, also where there are GPUs, so that figures are the same everywhere.
"""

from __future__ import annotations

import os
import signal
import threading

# Set before torch is imported. Several processes share few cores in these tests, and OpenMP
# threads that spin while they wait make each of them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start too.
if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 150 drawn conversations: one, several and no pictures, of 112 to 149 pixels."""
    from data_prep.drawn import write_drawn_dataset

    folder = tmp_path_factory.mktemp("drawn")
    write_drawn_dataset(folder, num_entries=150, seed=3, image_size=112)
    return folder


@pytest.fixture(scope="session")
def shards(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn conversations as ten shards prepared for Energon: 8 train, 1 val, 1 test."""
    from data_prep.energon import prepare
    from data_prep.executor import InProcessExecutor
    from data_prep.options import Options
    from data_prep.progress import Reporter
    from data_prep.run import Job, run

    folder = tmp_path_factory.mktemp("shards")
    job = Job(data_dir=drawn, output_dir=folder, json=None, options=Options(text_only="keep"))
    run(job, InProcessExecutor(), Reporter())
    prepare(folder, "8,1,1", num_workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny_model(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face folder of a tiny Qwen2-VL (0.1 M parameters) in which no tensor is trivial.

    Norm weights of 1 and biases of 0, as a model starts with, would hide a lost or swapped one.
    """
    return _tiny_folder(drawn, tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def tiny_model_25(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Qwen2.5-VL; the first of its two vision layers attends to windows."""
    folder = tmp_path_factory.mktemp("tiny_model_25")
    return _tiny_folder(drawn, folder, model_type="qwen2_5_vl", vision_full_layers=(1,))


def _tiny_folder(drawn: Path, folder: Path, **sizes: Any) -> Path:
    from dct_vl.model.random_model import TinyShape, write_random_model
    from dct_vl.verbs.random_model import conversation_texts

    # two heads and one group for each of two tensor-parallel ranks
    shape = TinyShape(
        **sizes,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=96,
        vision_depth=2,
        vision_embed_dim=32,
        vision_num_heads=2,
        init_std=0.1,
        max_bpe_size=512,
    )
    texts = conversation_texts(drawn / "cambrian737k.json")
    write_random_model(folder, corpus=texts, shape=shape)
    _perturb(folder / "model.safetensors")
    return folder


def _perturb(file: Path) -> None:
    """Add normal noise of std 0.1 to all norms and biases."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    generator = torch.Generator().manual_seed(5)
    for name in sorted(weights):
        if weights[name].ndim == 1:
            weights[name] += 0.1 * torch.randn(weights[name].shape, generator=generator)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def build_module(tiny_model: Path) -> Callable[..., Any]:
    """Builds the Megatron module of a tokenizer in this process, filled from a folder's weights.

    build_module(preset, folder=tiny_model, fused_layers=False, **tokenizer_keys) gives a
    QwenVLWithVisualTokenizer in eval mode.
    """
    from dct_vl.inference.loading import start_single_process

    start_single_process()

    import torch

    from dct_tokenizer.registry import preset_config
    from dct_vl.model.families.qwen_vl.megatron_config import ModelOptions, model_config
    from dct_vl.model.weights import load_hf_weights

    def build(
        preset: str, folder: Path = tiny_model, fused_layers: bool = False, **keys: Any
    ) -> Any:
        options = ModelOptions(
            layer_spec="local",
            dtype=torch.float32,
            seq_length=512,
            tokenizer={**preset_config(preset), **keys},
            fused_layers=fused_layers,
        )
        module = model_config(folder, options).configure_model(None)
        load_hf_weights(module, folder)
        return module.eval()

    return build


@pytest.fixture(scope="session")
def hf_model(tiny_model: Path) -> Any:
    """The tiny model in plain transformers: the reference."""
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VLForConditionalGeneration.from_pretrained(tiny_model).eval()
