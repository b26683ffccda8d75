"""Held-out samples in damaged shards: listed, and the others answered; a split without any."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from trainers_side import loaded

from data_prep.durable import atomic_write
from dct_tokenizer import build_tokenizer
from dct_vl.evaluation.forward_pass import write_words
from dct_vl.inference.generate.answers import AnswerOptions, write_answers
from dct_vl.inputs.samples import DamagedSample
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.inputs.shard_reader import read_split


@pytest.fixture
def copied(shards, tmp_path) -> Path:
    """The shared shards under an odd name, to be damaged; shard 8 is the validation split."""
    return Path(shutil.copytree(shards, tmp_path / "copied #1"))


@pytest.fixture(scope="module")
def whole_model(shards, tiny_model, build_module, tmp_path_factory):
    return loaded(
        build_module("pixel"),
        build_tokenizer("pixel", min_pixels=784, max_pixels=3136),
        tiny_model,
        data=shards,
        checkpoint=tmp_path_factory.mktemp("checkpoint") / "step",
    )


@pytest.fixture
def model(whole_model, copied):
    from dct_vl.inference.loading import with_data_path

    return with_data_path(whole_model, str(copied))


def damage(folder: Path, *, from_sample: int, to_end: bool = False) -> tuple[str, list[str]]:
    """Make the header of a sample of the validation split unreadable, or let its shard end there;
    the shard, and the keys of the samples that are lost.
    """
    shard = folder / "pretrain-000008.tar"
    with tarfile.open(shard) as tar:
        parts = tar.getmembers()
    keys = list(dict.fromkeys(part.name.partition(".")[0] for part in parts))
    first = next(p for p in parts if p.name.partition(".")[0] == keys[from_sample])
    if to_end:
        os.truncate(shard, first.offset + 100)
        return str(shard), keys[from_sample:]
    with open(shard, "r+b") as file:
        file.seek(first.offset)
        file.write(b"\xff" * 512)
    return str(shard), [keys[from_sample]]


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("to_end", [False, True])
def test_what_a_damaged_shard_does_not_give_back_is_told(copied, to_end):
    _, lost = damage(copied, from_sample=2, to_end=to_end)
    told = {}
    found = {sample.key for sample in read_split(str(copied), "val", on_fault=told.setdefault)}
    assert list(told) == lost
    assert {type(error) for error in told.values()} == {DamagedSample}
    assert found == keys_by_split(copied)["val"] - set(lost)


def test_without_anyone_to_tell_it_is_an_error_that_names_the_place(copied):
    shard, (lost,) = damage(copied, from_sample=2)
    with pytest.raises(DamagedSample, match=f"sample {lost}: {shard} is damaged"):
        list(read_split(str(copied), "val"))


@pytest.mark.parametrize("name", ["words", "answers"])
def test_damaged_samples_are_listed_with_their_shard(model, copied, tmp_path, name):
    shard, lost = damage(copied, from_sample=2)
    output = tmp_path / "out" / f"{name}.jsonl"
    done = write(name, model, output)
    assert {line["key"] for line in lines_of(output)} == keys_by_split(copied)["val"] - set(lost)
    (entry,) = lines_of(output.with_name(f"{name}.rejected.jsonl"))
    assert [entry[field] for field in ("key", "reason", "file")] == [
        *(lost[0], "damaged_shard", shard)
    ]
    assert str(done.rejected).startswith("1 samples rejected (damaged_shard 1): ")


def write(name: str, model, output: Path):
    """`dct-vl words` or `answers`."""
    if name == "words":
        return write_words(model, output, split="val", limit=None, batch_size=64)
    return write_answers(model, AnswerOptions(max_new_tokens=1), output)


@pytest.mark.parametrize("name", ["words", "answers"])
@pytest.mark.parametrize("why", ["empty", "absent", "damaged"])
def test_a_split_without_a_sample_is_an_error_that_leaves_nothing(
    model, copied, tmp_path, name, why
):
    message = "the val split of .* has no sample"
    if why == "damaged":
        _, lost = damage(copied, from_sample=0, to_end=True)
        message += f" that its shards give back: {len(lost)} are damaged"
    else:
        split = copied / ".nv-meta" / "split.yaml"
        parts = "  val: []\n" if why == "empty" else ""
        split.write_text(split.read_text().replace("  val:\n  - pretrain-000008.tar\n", parts))
    output = tmp_path / "out" / f"{name}.jsonl"
    with pytest.raises(ValueError, match=message):
        write(name, model, output)
    kept = {f"{name}.rejected.jsonl"} if why == "damaged" else set()
    assert {path.name for path in output.parent.iterdir()} == kept


def test_a_block_that_fails_leaves_the_file_of_before(tmp_path):
    file = tmp_path / "a" / "b.jsonl"
    with atomic_write(file) as opened:
        opened.write(b"whole")
        assert not file.exists()
    with pytest.raises(TypeError), atomic_write(file) as opened:
        opened.writelines([b"a part", None])
    assert file.read_bytes() == b"whole"
    assert list(file.parent.iterdir()) == [file]
