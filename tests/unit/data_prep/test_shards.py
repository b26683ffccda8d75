import gzip
import hashlib
import io
import os
import tarfile
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.energon.epathlib import EPath
from megatron.energon.flavors.webdataset.config import skip_meta_re, split_name_re
from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator
from raw_set import conversation, jpeg, write_tar

from data_prep.schema import SchemaError
from data_prep.shards import (
    ShardWriter,
    iter_samples,
    open_shard,
    read_sample,
    shard_names,
    split_name,
    ustar_header,
)
from data_prep.workspace import WorkspaceError


@given(st.from_regex(r"[A-Za-z0-9._-]{1,100}", fullmatch=True), st.integers(0, 8**11 - 1))
def test_header_is_tarfiles(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert ustar_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("x", 8**11)])
def test_header_bounds(name, size):
    with pytest.raises(ValueError, match="does not fit a ustar header"):
        ustar_header(name, size)


@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_reads_back_and_vouches_for_its_bytes(tmp_path_factory, contents):
    path = tmp_path_factory.mktemp("shard") / "a.tar"
    with ShardWriter(path) as writer:
        for number, data in enumerate(contents):
            writer.add(f"{number}.bin", data)
        size, digest = writer.publish()
    raw = path.read_bytes()
    assert (size, digest) == (len(raw), hashlib.sha256(raw).hexdigest())
    with tarfile.open(path) as tar:
        assert [tar.extractfile(member).read() for member in tar] == contents


def test_nothing_is_left_without_publish(tmp_path):
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.add("a", b"1")
        assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
    assert not list(tmp_path.iterdir())


member_names = st.one_of(
    st.from_regex(r"[ab./_\n]{1,12}", fullmatch=True),
    st.sampled_from(["./k.jpg", "train.v1/k.jpg", "._k.jpg", "a/._k.jpg", "__MACOSX__/k.jpg", "k"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12),
)


@given(member_names)
def test_names_are_split_as_energon_does(name):
    match = None if skip_meta_re.match(name) else split_name_re.match(name)
    assert split_name(name) == (match and match.groups())


@given(st.lists(st.tuples(member_names, st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE]))))
def test_samples_are_those_that_energon_indexes(found):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, (name, kind) in enumerate(found):
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, number if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(bytes(number)))
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        members = list(WebdatasetPreparator._iter_tar_sample_members(tar))
    expected = []
    for key, group in groupby(members, lambda member: member[1]):
        parts = [(part, info.offset, info.offset_data, info.size) for info, _, part in group]
        places = {part: (start, size) for part, _, start, size in parts}
        expected.append((key, parts[0][1], places))
    assert expected == [
        (one.key, one.offset, {name: (part.offset, part.size) for name, part in one.parts.items()})
        for one in iter_samples(file)
    ]


@pytest.mark.parametrize("folder", ["W", "W[1]", "W*"])
def test_shards_are_those_that_energon_finds(tmp_path, folder):
    root = tmp_path / folder
    for name in (
        *("b.tar", "a.tar", "sub/c.tar", "sub/deep/d.tar", "sub[1]/e.tar", "f.tgz"),
        *(".hidden.tar", ".data_prep/index/s.tar", "sub/.x/g.tar", "h.tar.partial", "i.tar.gz"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "folder.tar").mkdir()
    found = shard_names(root)
    assert found == ["a.tar", "b.tar", "f.tgz", "sub/c.tar", "sub/deep/d.tar", "sub[1]/e.tar"]
    if folder == "W":  # of the others Energon's own search makes a pattern
        energons = [
            path.relative_to(EPath(root))
            for suffix in ("tar", "tgz")
            for path in EPath(root).glob(f"**/*.{suffix}")
        ]
        assert found == sorted(name for name in energons if Path(root, name).is_file())


def sample(key, parts):
    record = b'{"conversations": %s}' % str(conversation()).replace("'", '"').encode()
    return {
        f"{key}.json": record.replace(b"\n", b""),
        **{f"{key}.{n}": d for n, d in parts.items()},
    }


def read_all(path):
    """Keys of the samples that can be used, and what is wrong with the others."""
    keys, faults, damages = [], {}, []
    with path.open("rb") as shard:
        for one in iter_samples(shard, lambda damage: damages.append(str(damage))):
            try:
                read_sample(one, shard)
                keys.append(one.key)
            except SchemaError as error:
                faults[one.key] = str(error)
    return keys, faults, damages


def make_shard(path):
    files = {}
    for key in "abcdef":
        files |= sample(key, {"jpg": jpeg(0, (8, 8))})
    write_tar(path, files)
    with tarfile.open(path) as tar:
        return {member.name: member.offset for member in tar}


@pytest.mark.parametrize(
    ("hit", "lost"), [("c.jpg", ["c"]), ("c.json", ["b", "c"]), ("a.json", ["a"]), ("f.jpg", ["f"])]
)
def test_damage_costs_the_samples_around_it_and_is_told(tmp_path, hit, lost):
    """What stands before a damaged header may lack a part, so it does not count as whole."""
    offset = make_shard(tmp_path / "s.tar")[hit]
    with (tmp_path / "s.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff")
    keys, faults, damages = read_all(tmp_path / "s.tar")
    assert keys == [key for key in "abcdef" if key not in lost]
    assert list(faults) == lost
    assert [damage.partition(":")[0] for damage in damages] == [f"byte {offset:,}"]


def test_a_cut_shard_and_one_without_an_end_mark(tmp_path):
    offsets = make_shard(tmp_path / "s.tar")
    os.truncate(tmp_path / "s.tar", offsets["d.jpg"] + 600)
    keys, faults, (damage,) = read_all(tmp_path / "s.tar")
    assert (keys, list(faults)) == (["a", "b", "c"], ["d"])
    assert "the file ends within a member" in damage
    os.truncate(tmp_path / "s.tar", offsets["d.json"])
    keys, faults, (damage,) = read_all(tmp_path / "s.tar")
    assert (keys, faults) == (["a", "b", "c"], {})
    assert "it may have been cut" in damage


def test_a_link_in_a_shard_is_told(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "b.jpg"
        tar.addfile(link)
    assert (
        "a.jpg is a link or a device, which training passes over"
        in read_all(tmp_path / "s.tar")[2][0]
    )


@pytest.mark.parametrize(
    ("part", "data"),
    [
        ("img_0.jpg", jpeg(0, (8, 8))),
        ("jpgs", b"\x80\x04\x95pickle"),
        ("npy", b"\x93NUMPY"),
        ("jp2", b"\0\0"),
    ],
)
def test_a_part_of_an_unknown_name_is_refused(tmp_path, part, data):
    write_tar(
        tmp_path / "s.tar", sample("a", {part: data}) | sample("b", {"jpg": b"1", "txt": b"A cat"})
    )
    keys, faults, _ = read_all(tmp_path / "s.tar")
    assert keys == ["b"], "text beside the media is no loss"
    assert f"part {part} is of a name that is not known; known are json, jpg" in faults["a"]


def test_a_compressed_shard_is_named(tmp_path):
    make_shard(tmp_path / "s.tar")
    (tmp_path / "z.tar").write_bytes(gzip.compress((tmp_path / "s.tar").read_bytes()))
    with pytest.raises(WorkspaceError, match=r"z\.tar is compressed \(gzip\).*: unpack it"):
        open_shard(tmp_path / "z.tar")
