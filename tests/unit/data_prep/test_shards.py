import hashlib
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shards import ShardWriter, ustar_header


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
