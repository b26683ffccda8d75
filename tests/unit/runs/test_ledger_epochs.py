"""Samples seen once, twice and never, by epoch, against the shards of a run."""

from __future__ import annotations

import orjson
import pytest

from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.ledger import divide, summarize
from dct_vl.runs.run_files import append_json_line, write_provenance


def test_epochs_are_as_long_as_what_can_be_seen():
    keys = [*"abcd", *"abac", *"b"]
    epochs = divide(keys, set("abcd"))
    counts = [
        (e.number, e.num_consumed, e.num_once, e.num_twice, e.num_more, e.num_never) for e in epochs
    ]
    assert counts == [(1, 4, 4, 0, 0, 0), (2, 4, 2, 1, 0, 1), (3, 1, 1, 0, 0, 3)]
    assert divide([], set("ab")) == ()


@pytest.fixture
def run(shards, tmp_path):
    """A run that saw the samples of the first two shards, one twice, and rejected another."""
    settings = [f"data.path={shards}", "model.path=m", "tokenizer=pixel"]
    write_provenance(compose_config(settings), tmp_path)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "rejects").mkdir()
    return tmp_path


def keys_of(shard):
    import tarfile

    with tarfile.open(shard) as tar:
        names = [m.name for m in tar if m.name.endswith(".json")]
    return [name.partition(".")[0] for name in names]


def test_the_training_split_is_what_can_be_seen(run, shards):
    meta = orjson.loads((shards / ".nv-meta" / ".info.json").read_bytes())
    counts = meta["shard_counts"]
    names = sorted(counts)
    total = sum(counts[name] for name in names[:8])
    seen = keys_of(shards / names[0])
    rejected = keys_of(shards / names[7])[0]
    assert len(seen) == counts[names[0]]
    line = {"key": rejected, "reason": "too_long", "detail": ""}
    append_json_line(run / "rejects" / "a.jsonl", line)
    # of the validation split, hence none of this run's
    append_json_line(run / "rejects" / "a.jsonl", {**line, "key": keys_of(shards / names[8])[0]})
    append_json_line(run / "ledger" / "dp0000.jsonl", {"step": 1, "keys": seen})
    append_json_line(run / "ledger" / "dp0000.jsonl", {"step": 2, "keys": seen[:1]})
    found = summarize(run)
    assert (found.num_samples, found.num_rejected) == (total, 1)
    assert found.num_never == total - 1 - len(seen)
    (epoch,) = found.epochs
    assert (epoch.num_once, epoch.num_twice) == (len(seen) - 1, 1)
    assert epoch.num_never == found.num_never
    lines = str(found).splitlines()
    assert f"  never seen: {found.num_never} of the {total} to train on" in lines
    assert lines[-1].startswith("(an epoch here ends after"), "as one sample came twice"
    assert lines[-2].split() == [str(n) for n in (1, len(seen) + 1, len(seen) - 1, 1, 0)] + [
        str(found.num_never)
    ]


def test_without_the_shards_it_says_so(run, shards, tmp_path):
    write_provenance(compose_config(["data.path=/none", "model.path=m", "tokenizer=pixel"]), run)
    append_json_line(run / "ledger" / "dp0000.jsonl", {"step": 1, "keys": ["a"]})
    assert "never seen: unknown" in str(summarize(run))


def test_of_many_steps_without_a_record_some_are_named(run):
    append_json_line(run / "ledger" / "dp0000.jsonl", {"step": 51, "keys": ["a"]})
    last = str(summarize(run)).splitlines()[-1]
    assert last == "  steps without a record: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 40 more"
