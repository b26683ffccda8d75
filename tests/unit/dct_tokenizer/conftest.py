"""Pictures and pretrained weights that the tests of the tokenizers share."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two photographs, uint8 (427, 640, 3)."""
    return load_sample_images().images


@pytest.fixture(scope="session")
def pretrained() -> torch.Tensor:
    """A Conv3d weight (48, 3, 2, 14, 14) of the magnitude of Qwen2-VL's, in float64."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(48, 3, 2, 14, 14, generator=generator, dtype=torch.float64) * 0.02


@pytest.fixture(scope="session")
def clip(photos) -> np.ndarray:
    """A pan over a photograph with noise: uint8 (16, 56, 112, 3), every frame different."""
    noise = np.random.default_rng(3)
    frames = [photos[0][50 : 50 + 56, 5 * i : 5 * i + 112] for i in range(16)]
    shaken = np.stack(frames) + noise.normal(0, 4, (16, 56, 112, 3))
    return shaken.clip(0, 255).astype(np.uint8)
