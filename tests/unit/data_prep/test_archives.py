"""Archives of every kind give the same files."""

import bz2
import gzip
import io
import lzma
import sqlite3
import struct
import tarfile
import zipfile

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from raw_set import entry, jpeg, output_bytes, write_json, write_tar
from rich.console import Console

from data_prep.executor import InProcessExecutor
from data_prep.locate import Locator
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.quarantine import Rejected
from data_prep.run import Job, run
from data_prep.sources import SourceError, find_tars
from data_prep.tar_index import TarIndex, TarReader

FILES = {f"s/{i}.bin": bytes([i]) * (70_000 * i) for i in range(5)}


def zipped(files, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


PACKED = {
    "s.tar": tarred,
    "s.tar.gz": lambda files: gzip.compress(tarred(files)),
    "s.tar.bz2": lambda files: bz2.compress(tarred(files)),
    "s.tar.xz": lambda files: lzma.compress(tarred(files)),
    "s.tar.zst": lambda files: zstd.compress(tarred(files)),
    "s.zip": zipped,
    "stored.zip": lambda files: zipped(files, zipfile.ZIP_STORED),
}


class Stream:
    """A file that cannot be sought in: a zip has sizes and checksums behind the data there."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += data
        return len(data)

    def flush(self):
        pass

    def getvalue(self):
        return self.data


class Reader:
    """Reads files as a run does."""

    def __init__(self, folder):
        self.folder, self.state = folder, folder / "state"
        self.tars = find_tars(folder)

    def read(self, *names):
        with TarIndex(self.state) as index:
            index.update(self.tars)
            locator = Locator(self.folder, self.tars, index)
            places = [locator.find(name) for name in names]
            self.faults = index.faults()
        reader = TarReader(self.folder, self.state)
        found = [reader.read(at.file, at.offset, at.size) for at in places]
        reader.close()
        return found


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("called", ["", "s.tar"])
def test_files_in_any_order(tmp_path, name, called):
    """What a file is, its content says: a gzip may be named .tar."""
    (tmp_path / (called or name)).write_bytes(PACKED[name](FILES))
    order = ["s/4.bin", "s/0.bin", "s/3.bin", "s/3.bin", "s/1.bin"]
    reader = Reader(tmp_path)
    assert reader.read(*order) == [FILES[name] for name in order]
    assert reader.faults == []


@pytest.mark.parametrize("name", ["s.tar.bz2", "s.tar.zst", "s.tar.xz", "s.tar.gz"])
def test_compressed_data_that_break_off_give_what_came_before(tmp_path, name):
    noise = {f"s/{i}": jpeg(i, (300, 200)) for i in range(40)}
    packed = PACKED[name](noise)
    (tmp_path / name).write_bytes(packed[: len(packed) // 2])
    reader = Reader(tmp_path)
    if name == "s.tar.bz2":  # one block of 900 kB holds it all
        with pytest.raises(SourceError, match="its bzip2 data break off"):
            reader.read("s/0")
        return
    assert reader.read("s/0", "s/1") == [noise["s/0"], noise["s/1"]]
    (fault,) = reader.faults
    assert fault.startswith(f"{name} is damaged")


@given(
    st.dictionaries(
        st.from_regex(r"[a-zé/]{1,20}", fullmatch=True).filter(lambda name: name[-1] != "/"),
        st.binary(max_size=3000),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),
)
def test_zips_are_read_as_zipfile_reads_them(tmp_path_factory, files, method, streamed):
    folder = tmp_path_factory.mktemp("zip")
    file = Stream() if streamed else io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    (folder / "x.zip").write_bytes(file.getvalue())
    with zipfile.ZipFile(folder / "x.zip") as archive:
        last = {name.strip("/").replace("//", "/"): archive.read(name) for name in files}
    wanted = [name for name in last if name and "//" not in name]
    assert Reader(folder).read(*wanted) == [last[name] for name in wanted]


@pytest.mark.parametrize("name", ["BZh/1.jpg", "Rar!", "PK\x03\x04", "7z"])
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_may_begin_with_any_name(tmp_path, name, tar_format):
    with tarfile.open(tmp_path / "s.tar", "w", format=tar_format) as tar:
        member = tarfile.TarInfo(name)
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    assert Reader(tmp_path).read(name) == [b"abc"]


def test_zstd_of_several_frames_and_skippable_ones(tmp_path):
    whole = tarred(FILES)
    half = len(whole) // 2
    skipped = b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"pzst"
    packed = skipped + zstd.compress(whole[:half]) + skipped + zstd.compress(whole[half:])
    (tmp_path / "s.tar.zst").write_bytes(packed)
    assert Reader(tmp_path).read("s/4.bin", "s/1.bin") == [FILES["s/4.bin"], FILES["s/1.bin"]]


def test_damage_in_a_zip_is_seen_by_its_checksum(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        data = bytearray(zipped({"s/1": b"\0" * 50 + b"1234567" * 9}, method))
        data[30 + 3 + 6] ^= 4
        (tmp_path / "s.zip").write_bytes(data)
        with pytest.raises(OSError, match="damaged"):
            Reader(tmp_path).read("s/1")


def test_members_of_a_zip_that_are_not_read_say_why(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        link = zipfile.ZipInfo("s/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("s/bzip2", b"1" * 100, zipfile.ZIP_BZIP2)
        archive.writestr("s/locked", b"1")
    data = (tmp_path / "s.zip").read_bytes()
    place = data.rindex(b"PK\x01\x02")
    data = data[: place + 8] + struct.pack("<H", 1) + data[place + 10 :]
    (tmp_path / "s.zip").write_bytes(data)
    for name, why in (("link", "a link"), ("bzip2", "method 12"), ("locked", "encrypted")):
        with pytest.raises(Rejected, match=why):
            Reader(tmp_path).read(f"s/{name}")


def test_names_of_a_mac_are_utf8_without_saying_so(tmp_path):
    data = zipped({"s/é": b"1"})
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.index(mark) + place
        data = data[:start] + b"\0\0" + data[start + 2 :]
    (tmp_path / "s.zip").write_bytes(data)
    assert Reader(tmp_path).read("s/é") == [b"1"]


def convert(data, output):
    job = Job(data_dir=data, output_dir=output, json=None, options=Options(shard_size=2))
    return run(job, InProcessExecutor(), Reporter(Console(quiet=True)))


def test_shards_are_the_same_from_every_kind(tmp_path):
    images = {f"s/{i}.jpg": jpeg(i) for i in range(4)}
    made = {}
    for name in ("s.tar", "s.tar.gz", "s.tar.bz2", "s.tar.zst", "s.zip"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(PACKED[name](images))
        write_json(folder, [entry(i, f"s/{i}.jpg") for i in range(4)])
        assert convert(folder, tmp_path / f"W-{name}").kept == 4
        made[name] = output_bytes(tmp_path / f"W-{name}")
        assert not list((tmp_path / f"W-{name}").rglob("*.unpacked")), "the room is given back"
        assert made[name] == made["s.tar"]


def test_a_lost_shard_is_made_again_from_a_tar_that_was_unpacked(tmp_path):
    folder, output = tmp_path / "data", tmp_path / "W"
    folder.mkdir()
    (folder / "s.tar.zst").write_bytes(
        zstd.compress(tarred({f"s/{i}.jpg": jpeg(i) for i in range(4)}))
    )
    write_json(folder, [entry(i, f"s/{i}.jpg") for i in range(4)])
    convert(folder, output)
    before = output_bytes(output)
    (output / "pretrain-000001.tar").unlink()
    convert(folder, output)
    assert output_bytes(output) == before


def test_an_index_of_a_former_version_is_made_anew(tmp_path):
    write_tar(tmp_path / "s.tar", {"s/1": b"1"})
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "members.sqlite") as old:
        old.execute("CREATE TABLE tar (id INTEGER PRIMARY KEY, name TEXT, whole INTEGER)")
        old.execute("CREATE TABLE member (name BLOB PRIMARY KEY)")
    assert Reader(tmp_path).read("s/1") == [b"1"]
