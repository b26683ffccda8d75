"""Every sample once before any twice, whatever the ranks, loader processes and buffers."""

from __future__ import annotations

from collections import Counter
from itertools import islice, product
from types import SimpleNamespace

import pytest
import yaml
from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    stateless,
)

from dct_vl.inputs.samples import CrudeChat
from dct_vl.inputs.shard_index import keys_by_split
from dct_vl.training.data.epochs import mixed_epochs, train_dataset


@stateless
def cook(sample):
    return CrudeChat(**basic_sample_keys(sample), record=b"", images=())


class Keys(DefaultTaskEncoder):
    """Batches of keys; a pack is of two samples."""

    cookers = (Cooker(cook),)
    decoder = None

    @stateless
    def preencode_sample(self, sample):
        return sample

    def select_samples_to_pack(self, samples):
        return [samples[at : at + 2] for at in range(0, len(samples), 2)]

    @stateless
    def pack_selected_samples(self, samples):
        keys = "|".join(sample.__key__ for sample in samples)
        return CrudeChat(__key__=keys, __restore_key__=(), record=b"", images=())

    @stateless
    def batch(self, samples):
        return [key for sample in samples for key in sample.__key__.split("|")]


def make(path, *, rank=0, ranks=1, workers=0, shuffle=1000, packing=None, mix=False, batch=1):
    config = WorkerConfig(rank=rank, world_size=ranks, num_workers=workers, seed_offset=7)
    return train_dataset(
        str(path),
        Keys(),
        config,
        batch_size=batch,
        packing_buffer_size=packing,
        shuffle_buffer_size=shuffle,
        max_samples_per_sequence=5,
        mix_epochs=mix,
    )


@pytest.fixture
def streams(monkeypatch):
    """Keys that every loader process delivers in its first batches, without any process."""

    def read(path, num_batches, *, ranks, workers, **options):
        found = []
        for rank, worker in product(range(ranks), range(max(workers, 1))):
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            monkeypatch.setattr("torch.utils.data.get_worker_info", lambda info=info: info)
            dataset = make(path, rank=rank, ranks=ranks, workers=workers, **options)
            dataset.worker_config.worker_activate(0)
            try:
                found.append([key for batch in islice(dataset, num_batches) for key in batch])
            finally:
                dataset.worker_config.worker_deactivate()
        return found

    return read


@pytest.mark.parametrize(
    ("ranks", "workers", "shuffle", "packing", "batch"),
    [
        pytest.param(1, 0, 1000, None, 1, id="one process, a buffer larger than the set"),
        pytest.param(1, 3, 8, None, 4, id="a buffer smaller than the share, odd batches"),
        pytest.param(2, 2, 1000, None, 1, id="two ranks, two processes"),
        pytest.param(2, 1, 0, 1000, 1, id="packs from more than the share"),
        pytest.param(2, 2, 1000, 7, 2, id="packs from less, both buffers"),
        pytest.param(1, 2, 8, 1000, 3, id="packs from more, shuffled by less"),
    ],
)
def test_a_process_delivers_its_share_before_it_begins_again(
    streams, shards, ranks, workers, shuffle, packing, batch
):
    options = {"ranks": ranks, "workers": workers, "shuffle": shuffle, "batch": batch}
    everything = keys_by_split(shards)["train"]
    share = len(everything) // (ranks * max(workers, 1))
    found = streams(shards, 3 * share // batch, packing=packing, **options)
    shares = []
    for keys in found:
        held = list(dict.fromkeys(keys))
        assert len(held) in (share, share + 1)
        first, second = keys[: len(held)], keys[len(held) : 2 * len(held)]
        assert set(first) == set(second) == set(held)
        assert first != second or shuffle == 0
        shares += held
    assert Counter(shares) == Counter(everything)


def test_energons_own_way_mixes_them_and_is_warned_of(streams, shards):
    """What the same settings gave: samples twice before others once."""
    everything = keys_by_split(shards)["train"]
    found = streams(shards, len(everything) // 2, ranks=2, workers=0, mix=True)
    times = Counter(key for keys in found for key in keys)
    assert max(times.values()) > 1
    config = WorkerConfig(rank=0, world_size=2, num_workers=0)
    options = {"ranks": 2}
    share = len(everything) // 2
    said = mixed_epochs(make(shards, mix=True, **options), config)
    assert said == (
        f"data.shuffle_buffer_size=1000 is more than the {share} samples of a loader process (of "
        "2): several epochs are mixed, and samples come again before others have come once; set "
        "data.mix_epochs=false"
    )
    assert mixed_epochs(make(shards, mix=True, shuffle=share, **options), config) is None
    both = mixed_epochs(make(shards, mix=True, packing=share + 1, **options), config)
    assert both.startswith(
        f"data.packing_buffer_size={share + 1} and data.shuffle_buffer_size=1000"
    )
    assert mixed_epochs(make(shards, packing=1000, **options), config) is None


@pytest.mark.parametrize(("shuffle", "packing"), [(1000, None), (3, 4), (1000, 1000)])
def test_a_place_anywhere_in_an_epoch_is_found_again(shards, shuffle, packing):
    """While buffers fill, are full, and are emptied at an epoch's end."""
    # a share of seven samples
    options = {"rank": 1, "ranks": 17, "shuffle": shuffle, "packing": packing}

    def loader():
        return get_savable_loader(make(shards, **options), watchdog_timeout_seconds=None)

    whole = list(islice(loader(), 16))
    assert len(whole[0]) == (2 if packing else 1)
    got, state = [], None
    while len(got) < len(whole):
        going = loader()
        if state is not None:
            going.restore_state_rank(state)
        got += islice(going, 1 + len(got) % 2)
        state = going.save_state_rank()
    assert got[: len(whole)] == whole


def test_blended_sets_keep_their_epochs_apart(streams, shards, tmp_path):
    """One twice in an epoch of all, or both by weight."""
    everything = keys_by_split(shards)["train"]
    parts = [
        {"path": str(shards), "subset": {"range": [low, high]}}
        for low, high in (("0%", "25%"), ("75%", "100%"))
    ]

    def keys_of_blend(kind, name, values, num_batches, **options):
        train = [{**part, name: value} for part, value in zip(parts, values, strict=True)]
        content = {"__module__": "megatron.energon", "__class__": "MetadatasetV2"}
        file = tmp_path / f"{kind}.yaml"
        file.write_text(yaml.dump({**content, "splits": {"train": {kind: train}}}))
        (keys,) = streams(file, num_batches, ranks=1, workers=0, **options)
        return keys

    keys = keys_of_blend("blend_epochized", "repetitions", (2, 1), 100, packing=50)
    num_low, num_high = int(0.25 * len(everything)), len(everything) - int(0.75 * len(everything))
    times = Counter(keys[: 2 * num_low + num_high])
    assert sorted(times.values()) == [1] * num_high + [2] * num_low
    twice = [key for key in keys if times[key] == 2]
    assert len(set(twice[:num_low])) == num_low, "its first time is over before its second"

    keys = keys_of_blend("blend", "weight", (3, 1), 2 * len(everything))
    for held in ({key for key in times if times[key] == count} for count in (1, 2)):
        drawn = [key for key in keys if key in held]
        assert len(drawn) > len(held)
        assert set(drawn[: len(held)]) == held
