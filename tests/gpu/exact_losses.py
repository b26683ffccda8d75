"""Writes the losses of `gpu_packs.PACKS` in float32 on the CPU: MODEL_FOLDER OUTPUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from gpu_packs import PRESETS, build, losses, make_encoder, make_samples, means_of_padded, padded


def main() -> None:
    """A sample's loss by tokenizer, each sample alone in its row."""
    folder, output = map(Path, sys.argv[1:])
    assert not torch.cuda.is_available()
    found = {}
    for preset in PRESETS:
        encoder = make_encoder(folder, preset)
        samples = make_samples(encoder)
        module = build(folder, preset, dtype=torch.float32)
        with torch.no_grad():
            loss = losses(module, padded(encoder, samples))
        found[preset] = means_of_padded(loss, samples).tolist()
    output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
