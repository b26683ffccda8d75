"""What is wrong with a run's data is said before anything starts, with the fix."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import pytest
import yaml

from data_prep.blend import BlendMember, blend
from dct_vl.errors import ConfigError
from dct_vl.inputs.data_sets import num_samples
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.data_checks import check_data_path, check_splits
from dct_vl.training.processes.doctor import check_data


@pytest.fixture
def copied(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "shards")


def compose(path, *overrides):
    settings = (f"data.path={path}", "model.path=m", "tokenizer=pixel", *overrides)
    return compose_config(["trainer.val_every=5", "trainer.max_steps=9", *settings])


def set_val(folder, names):
    file = folder / ".nv-meta" / "split.yaml"
    parts = yaml.safe_load(file.read_text())
    file.write_text(yaml.dump({**parts, "split_parts": {**parts["split_parts"], "val": names}}))


def test_validation_needs_a_micro_batch_on_each_rank(copied):
    count = num_samples(str(copied), "val")
    assert count > 8
    size = count // 2
    check_splits(compose(copied, f"trainer.micro_batch_size={size}"), 2)
    more = compose(copied, f"trainer.micro_batch_size={size + 1}")
    check_splits(more, 1)
    with pytest.raises(ConfigError) as caught:
        check_splits(more, 2)
    assert str(caught.value).startswith(
        f"the val split of {copied} has {count} samples, and a validation needs at least "
        f"{2 * size + 2}, a micro batch of {size + 1} on each of 2 data-parallel ranks: give it"
    )
    assert "lower MBS, or set trainer.val_every=0" in str(caught.value)


@pytest.mark.parametrize("names", [[], None])
def test_an_empty_validation_split_is_refused_where_it_would_be_used(copied, names):
    set_val(copied, names or [])
    if names is None:  # not even named
        file = copied / ".nv-meta" / "split.yaml"
        parts = yaml.safe_load(file.read_text())
        del parts["split_parts"]["val"]
        file.write_text(yaml.dump(parts))
    run = compose(copied)
    with pytest.raises(
        ConfigError, match=rf"the val split of {copied} has no sample, .*val_every=0"
    ):
        check_splits(run)
    assert check_data(run).status == "FAIL"
    assert "has no sample" in check_data(run).detail
    for unused in ("trainer.val_every=0", "trainer.stop_at_step=4"):
        check_splits(compose(copied, unused))
    assert check_data(compose(copied, "trainer.val_every=0")).status == "ok"


def test_an_empty_training_split_is_refused(copied):
    file = copied / ".nv-meta" / "split.yaml"
    parts = yaml.safe_load(file.read_text())
    file.write_text(yaml.dump({**parts, "split_parts": {**parts["split_parts"], "train": []}}))
    with pytest.raises(
        ConfigError, match=rf"the train split of {copied} has no sample: run `python"
    ):
        check_splits(compose(copied, "trainer.val_every=0"))


def test_a_file_is_all_to_train_on(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    line = json.dumps({"conversations": turns})
    files = [tmp_path / f"{name}.jsonl" for name in ("train", "held", "empty")]
    for file, lines in zip(files, ([line] * 3, [line], []), strict=True):
        file.write_text("\n".join(lines))
    train, held, empty = files
    check_data_path(str(train))
    with pytest.raises(ConfigError, match=r"has no val split: set data\.val_path to a file"):
        check_splits(compose(train))
    check_splits(compose(train, "trainer.val_every=0"))
    check_splits(compose(train, f"data.val_path={held}"))
    two = compose(train, f"data.val_path={held}", "trainer.micro_batch_size=2")
    with pytest.raises(ConfigError, match=r"has 1 samples, .* add entries to the file"):
        check_splits(two)
    with pytest.raises(ConfigError, match=r"empty\.jsonl holds no entry"):
        check_splits(compose(train, f"data.val_path={empty}"))
    with pytest.raises(ConfigError, match=r"none\.jsonl does not exist"):
        check_data_path(str(tmp_path / "none.jsonl"))


FOREIGN = (
    {"__module__": "megatron.energon", "__class__": "VQAWebdataset", "field_map": {"image": "jpg"}},
    {"sample_type": {"__module__": "megatron.energon", "__class__": "CaptioningSample"}},
)


@pytest.mark.parametrize("described", FOREIGN)
def test_shards_that_were_prepared_for_another_task_are_refused(copied, tmp_path, described):
    """As Megatron-LM's README has it; alone, and in a blend."""
    file = copied / ".nv-meta" / "dataset.yaml"
    file.write_text(yaml.dump(described))
    name = described.get("__class__") or described["sample_type"]["__class__"]
    again = rf"as {name}; expected CrudeWebdataset, .*`python -m data_prep prepare {copied}` anew"
    with pytest.raises(ConfigError, match=again):
        check_data_path(str(copied))
    blend(tmp_path / "all.yaml", [BlendMember(root=copied, weight=None)])
    with pytest.raises(ConfigError, match=again):
        check_data_path(str(tmp_path / "all.yaml"))

    (copied / "manifest.json").unlink()  # another tool made these
    shutil.rmtree(copied / ".data_prep")
    for shard in copied.glob("*.tar"):
        with tarfile.open(shard, "w") as tar:
            for part, data in (("jpg", b"x"), ("json", b'{"question": "a"}')):
                member = tarfile.TarInfo(f"k.{part}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    with pytest.raises(
        ConfigError, match=rf"`python -m data_prep convert {copied} --output-dir W`"
    ):
        check_data_path(str(copied))
    file.write_text("a: [")
    with pytest.raises(ConfigError, match=r"dataset\.yaml cannot be read"):
        check_data_path(str(copied))


TALK = b'{"image": "a.jpg", "conversations": [{"from": "human", "value": "a"}, %s]}' % (
    b'{"from": "gpt", "value": "b"}'
)


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"img_0.jpg": b"\xff\xd8", "json": TALK}, r"part img_0\.jpg is of a name .* not known"),
        ({"jpgs": b"\xff\xd8", "json": TALK}, "part jpgs is of a name"),
        ({"image.bin": b"\xff\xd8", "json": TALK}, r"part image\.bin is of a name"),
        ({"jpg": b"\xff\xd8", "txt": b"a cat"}, "0 JSON parts"),
        ({"json": TALK}, "the JSON names 1 images, the sample holds 0"),
    ],
)
def test_shards_of_which_nothing_can_be_used_are_refused(copied, parts, fault):
    (copied / "manifest.json").unlink()  # another tool made these
    shutil.rmtree(copied / ".data_prep")
    write_shards(copied, [parts] * 4)
    message = rf"none of the first 32 samples; k0 of pretrain-000000\.tar: {fault}"
    with pytest.raises(ConfigError, match=message):
        check_data_path(str(copied))
    assert check_data(compose(copied)).status == "FAIL"
    write_shards(copied, [parts, {"jpg": b"\xff\xd8", "json": TALK}])
    check_data_path(str(copied))


def write_shards(folder, samples):
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard, "w") as tar:
            for number, parts in enumerate(samples):
                for part, data in parts.items():
                    member = tarfile.TarInfo(f"k{number}.{part}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def test_a_file_of_which_no_line_can_be_used_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("{\n" * 40)
    with pytest.raises(ConfigError, match=r"none of its first 32 entries; line 1 of x\.jsonl: "):
        check_data_path(str(path))
    path.write_text("{\n" + TALK.decode().replace('"image": "a.jpg", ', ""))
    check_data_path(str(path))
