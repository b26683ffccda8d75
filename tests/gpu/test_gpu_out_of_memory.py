"""A step that the device has no memory for, in a real run."""

from __future__ import annotations

import re

from dct_vl.runs.config.compose import compose_config


def test_the_message_names_the_pack_and_what_would_fit(runs):
    said = runs.out_of_memory()
    start = said.index("error: rank 0 ran out of memory in step 1: ")
    lines = said[start:].strip().splitlines()
    assert "CUDA out of memory. Tried to allocate" in lines[0]
    assert re.match(r"  of [\d.]+ GiB, [\d.]+ held weights, gradients and optimizer", lines[1])
    pack = re.match(
        r"  micro batch 1: 2 rows of 16384 tokens with (\d+) samples; \d+ text, \d+ visual and "
        r"(\d+) padding tokens; \d+ ViT patches, \d+ in the longest image; samples: \S",
        lines[2],
    )
    assert pack, lines[2]
    assert int(pack[1]) > 20
    assert int(pack[2]) < 16384
    assert lines[3] == "each of these settings fits by the estimate:"
    offers = [line.split() for line in lines[4:] if " GiB less" in line]
    settings = [words[0] for words in offers]
    assert settings[:2] == ["speed.recompute=true", "trainer.micro_batch_size=1"]
    assert len(settings) == 3
    for words in offers:
        assert words[1] == "about"
        compose_config(["data.path=d", "model.path=m", "tokenizer=pixel", words[0]])
    assert "Traceback" not in said
