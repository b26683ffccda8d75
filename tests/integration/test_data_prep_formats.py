"""One set of conversations in every format: the model sees the same, and trains on each."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from command_line import invoke
from conftest import ROOT, Trainer

from data_prep.shards import iter_samples, shard_paths
from dct_vl.inputs.chat import ChatTokenizer, read_text_tokenizer
from dct_vl.inputs.samples import cook_chat, read_record

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from any_format import CAPTIONS, CHATS, caption_of, drawn_talks

pytestmark = pytest.mark.slow

NUM_TALKS = 12
#: whose shards are equal byte for byte
EQUAL = ("llava", "messages", "parts")
EXPECTED_FORMATS = {
    "llava": "llava",
    "messages": "messages",
    "parts": "messages",
    "inline": "messages",
    "parquet_bytes": "parquet",
    "parquet_struct": "parquet",
    "saved": "hf",
    "folder": "folder",
    "webdataset": "webdataset",
}


@pytest.fixture(scope="module")
def converted(drawn: Path, tmp_path_factory) -> dict[str, Path]:
    """Folders of shards by format, each of twelve conversations and one with a broken image."""
    root = tmp_path_factory.mktemp("formats")
    talks = drawn_talks(drawn, NUM_TALKS + 1)
    path, data = next(iter(talks[-1].images.items()))
    talks[-1] = replace(talks[-1], images={path: data[:-200]})
    folders = {}
    for name, write in [*CHATS.items(), *CAPTIONS.items()]:
        said = talks if name in CHATS else list(map(caption_of, talks))
        # Energon wants keys that differ where all are trained together
        prefix = "json" if name in EQUAL else name
        said = [replace(talk, id=f"{prefix}-{number:02d}") for number, talk in enumerate(said)]
        data_dir, folders[name] = root / "data" / name, root / name
        data_dir.mkdir(parents=True)
        done = invoke(
            *("data", "convert", write(data_dir, said), "--output-dir", folders[name]),
            *("--workers", 1, "--shard-size", 4),
        )
        assert done.exit_code == 0, done.output
        assert f"format: {EXPECTED_FORMATS[name]} (" in done.output
    return folders


def seen_by_the_model(folder: Path, tokenizer: ChatTokenizer) -> list[tuple]:
    """Token ids, answer mask and encoded images of every sample, as training's reader has them."""
    seen = []
    for path in shard_paths(folder):
        with path.open("rb") as shard:
            for sample in iter_samples(shard):
                parts = {name: part.read(shard) for name, part in sample.parts.items()}
                meta = {"__key__": sample.key, "__restore_key__": (), "__sources__": ()}
                crude = cook_chat({**meta, "__subflavors__": {}, **parts})
                record = read_record(crude)
                chat = tokenizer.tokenize(record.turns, len(crude.images))
                seen.append((chat, crude.images))
    return seen


@pytest.mark.parametrize("names", [tuple(CHATS), tuple(CAPTIONS)], ids=["chats", "captions"])
def test_every_format_says_the_same(converted, tiny_model, names):
    tokenizer = ChatTokenizer(read_text_tokenizer(tiny_model))
    first, *others = (seen_by_the_model(converted[name], tokenizer) for name in names)
    assert len(first) == NUM_TALKS
    for name, other in zip(names[1:], others, strict=True):
        assert other == first, name


@pytest.mark.parametrize("name", [*CHATS, *CAPTIONS])
def test_nothing_is_lost(converted, name):
    manifest = orjson.loads((converted[name] / "manifest.json").read_bytes())
    assert manifest["entries"] == NUM_TALKS + 1
    assert manifest["kept"] == NUM_TALKS
    assert manifest["rejected"] == {"truncated_image": 1}
    (line,) = (converted[name] / "quarantine.jsonl").read_bytes().splitlines()
    assert orjson.loads(line)["index"] == NUM_TALKS


def test_training_takes_each(converted, train: Trainer, tmp_path):
    """Three steps over all shards; of sets whose shards are equal byte for byte, over one."""
    for name in EQUAL[1:]:
        for path in shard_paths(converted[name]):
            assert path.read_bytes() == (converted["llava"] / path.name).read_bytes()
    different = [name for name in converted if name not in EQUAL[1:]]
    for name in different:
        for path in shard_paths(converted[name]):
            shutil.copy(path, tmp_path / f"{name}-{path.name}")
    done = invoke("data", "prepare", tmp_path, "--split", "1,0,0", "--num-workers", 1)
    assert done.exit_code == 0, done.output
    num_samples = NUM_TALKS * len(different)
    run = train(
        "formats",
        f"data.path={tmp_path}",
        "trainer.max_steps=3",
        f"trainer.global_batch_size={num_samples // 3}",
        "trainer.save_every=0",
        "trainer.val_every=0",
        "data.num_workers=1",
        "data.shuffle_buffer_size=0",
    )
    assert len(run.values("loss")) == 3
    assert sum(map(len, run.ledger().values())) == num_samples
