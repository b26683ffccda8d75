"""Tars are read to the end of their file."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.tar_walk import members, walk

BLOCK = tarfile.BLOCKSIZE
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

names = st.one_of(
    st.from_regex(r"[a-z./_]{1,40}", fullmatch=True),
    st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120),
).filter(lambda name: name.strip("/"))
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
entries = st.lists(st.tuples(names, kinds, st.binary(max_size=1500)), max_size=6)


def pack(found, tar_format):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, kind, data in found:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "target" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def listed(data):
    """Members of a tar, and what is said of damage."""
    damages = []
    found = [described(member) for member in members(io.BytesIO(data), damages.append)]
    return found, damages


def described(member):
    return member.name, member.type, member.offset, member.offset_data, member.size


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [described(member) for member in tar]


@given(entries, st.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
def test_a_sound_tar_is_listed_as_tarfile_does(found, tar_format):
    data = pack(found, tar_format)
    assert listed(data) == (by_tarfile(data), [])


@given(st.lists(st.tuples(entries, st.sampled_from(FORMATS[1:])), min_size=1, max_size=3))
def test_joined_tars_are_listed_one_after_the_other(parts):
    packed = [pack(found, tar_format) for found, tar_format in parts]
    expected, start = [], 0
    for data in packed:
        expected += [(n, t, o + start, d + start, s) for n, t, o, d, s in by_tarfile(data)]
        start += len(data)
    assert listed(b"".join(packed)) == (expected, [])


files = st.lists(
    st.tuples(st.text("abc", min_size=1, max_size=200), st.binary(max_size=1500)),
    min_size=2,
    max_size=6,
)


@given(files, st.sampled_from(FORMATS[1:]), st.data())
def test_one_broken_header_costs_its_member_and_is_told(found, tar_format, data):
    whole = pack([(name, tarfile.REGTYPE, content) for name, content in found], tar_format)
    before = by_tarfile(whole)
    hit = data.draw(st.integers(0, len(before) - 1))
    offset, behind = before[hit][2], before[hit][3]
    broken = bytearray(whole)
    broken[behind - BLOCK + data.draw(st.integers(0, 99))] ^= 1 << data.draw(st.integers(0, 7))
    after, damages = listed(bytes(broken))
    assert after == before[:hit] + before[hit + 1 :]
    assert [damage.offset for damage in damages] == [offset]


@given(files, st.data())
def test_a_cut_is_told_wherever_it_falls(found, data):
    whole = pack([(name, tarfile.REGTYPE, content) for name, content in found], tarfile.GNU_FORMAT)
    before = by_tarfile(whole)
    end = before[-1][3] + -(-before[-1][4] // BLOCK) * BLOCK
    cut = data.draw(st.integers(before[0][3], end + BLOCK - 1))
    after, damages = listed(whole[:cut])
    assert after == [member for member in before if member[3] <= cut]
    assert len(damages) == 1


@pytest.mark.parametrize("data", [b"", b"<html>", bytes(10), b"x" * 5000])
def test_what_is_no_tar(data):
    with pytest.raises(tarfile.ReadError):
        listed(data)


def test_an_empty_tar():
    assert listed(bytes(1024)) == ([], [])


@pytest.mark.parametrize("tail", [b"", b"\1" * BLOCK, bytes(9 * BLOCK)])
def test_where_the_walk_has_ended(tail):
    """Energon's index takes it for the end of the last sample."""
    data = pack([("a", tarfile.REGTYPE, b"1" * 700)], tarfile.GNU_FORMAT)
    file = io.BytesIO(data + tail)
    with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
        assert len(list(walk(tar, lambda damage: None))) == 1
        assert tar.offset == (len(data + tail) if tail.strip(b"\0") else 3 * BLOCK)
