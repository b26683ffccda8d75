import io
import tarfile
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_set import write_tar

from data_prep.archives import unread_archives
from data_prep.locate import Locator
from data_prep.quarantine import Reason, Rejected
from data_prep.sources import SourceError, find_tars
from data_prep.tar_index import TarIndex, TarReader, member_name


def fetch(folder, state, *images):
    """Bytes of each image, found and read as a run does it."""
    tars = find_tars(folder)
    with TarIndex(state) as index:
        index.update(tars)
        locator = Locator(folder, tars, index)
        locations = [locator.find(image) for image in images]
    reader = TarReader(folder, state)
    found = [
        (folder / at.file).read_bytes()
        if at.offset < 0
        else reader.read(at.file, at.offset, at.size)
        for at in locations
    ]
    reader.close()
    return found


def reason_for(folder, state, image):
    with pytest.raises(Rejected) as caught:
        fetch(folder, state, image)
    return caught.value.reason


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_headers_of_all_kinds(tmp_path, tar_format):
    long_name = "ai2d/" + "deep/" * 15 + "x.jpg"
    names = ["ai2d/a.jpg", "./ai2d//b.jpg", long_name, "c.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["ai2d/" + "n" * 180 + ".jpg", "ai2d/üñ.jpg"]
    with tarfile.open(tmp_path / "ai2d.tar", "w", format=tar_format) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()[: len(name)]))
    wanted = [name.removeprefix("./").replace("//", "/") for name in names]
    wanted[3] = "ai2d/c.jpg"  # the tar's own name is the folder
    found = fetch(tmp_path, tmp_path / "state", *wanted)
    assert found == [name.encode()[: len(name)] for name in names]


def test_composed_and_decomposed_names_are_the_same(tmp_path):
    decomposed = unicodedata.normalize("NFD", "ai2d/é.jpg")
    write_tar(tmp_path / "ai2d.tar", {decomposed: b"1"})
    assert fetch(tmp_path, tmp_path / "state", unicodedata.normalize("NFC", decomposed)) == [b"1"]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz"])
def test_compressed_tars_are_read_at_any_offset(tmp_path, suffix):
    files = {f"s/{i}": bytes([i]) * 3_000_000 for i in range(5)}
    write_tar(tmp_path / f"s{suffix}", files, mode="w:gz")
    order = ["s/4", "s/0", "s/3", "s/3", "s/1"]
    assert fetch(tmp_path, tmp_path / "state", *order) == [files[name] for name in order]
    assert (tmp_path / "state" / f"s{suffix}.gzindex").exists()


def test_own_tar_goes_before_others(tmp_path):
    write_tar(tmp_path / "a.tar", {"b/x.jpg": b"in a", "only.jpg": b"elsewhere"})
    write_tar(tmp_path / "b.tar", {"x.jpg": b"in b, without folder"})
    assert fetch(tmp_path, tmp_path / "s1", "b/x.jpg", "only.jpg") == [
        *(b"in b, without folder", b"elsewhere"),
    ]


def test_last_of_equal_names_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for data in (b"old", b"new!"):
            member = tarfile.TarInfo("a/x")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert fetch(tmp_path, tmp_path / "state", "a/x") == [b"new!"]
    with TarIndex(tmp_path / "state") as index:
        assert index.faults() == [
            "a.tar holds 1 files more than once (a/x …); the last copy counts, as in tar"
        ]


def test_the_same_path_in_two_tars_is_nobodys_choice(tmp_path):
    write_tar(tmp_path / "one.v1.tar", {"x.jpg": b"1", "a/y.jpg": b"1"})
    write_tar(tmp_path / "two.tar", {"x.jpg": b"22", "a/y.jpg": b"1"})
    for image in ("x.jpg", "a/y.jpg"):
        with pytest.raises(Rejected, match=r"in one\.v1\.tar and in two\.tar") as caught:
            fetch(tmp_path, tmp_path / "state", image)
        assert caught.value.reason is Reason.AMBIGUOUS_IMAGE
    assert f"as in one.v1/{image}" in str(caught.value)
    assert fetch(tmp_path, tmp_path / "state", "two/x.jpg", "one.v1/x.jpg") == [b"22", b"1"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_joined_tars_are_read_on(tmp_path, mode):
    for number in range(3):
        write_tar(tmp_path / f"part{number}", {f"s/{number}": bytes([number]) * 900}, mode)
    parts = [(tmp_path / f"part{number}").read_bytes() for number in range(3)]
    (tmp_path / "s.tar").write_bytes(b"".join(parts))
    found = fetch(tmp_path, tmp_path / "state", "s/0", "s/1", "s/2")
    assert found == [bytes([number]) * 900 for number in range(3)]
    with TarIndex(tmp_path / "state") as index:
        assert index.faults() == []


def test_tar_and_folder_side_by_side(tmp_path):
    write_tar(tmp_path / "a.tar", {"a/1": b"tar"})
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "1").write_bytes(b"folder")
    (tmp_path / "a" / "sub" / "2").write_bytes(b"two")
    assert fetch(tmp_path, tmp_path / "state", "a/1", "a/sub/2") == [b"tar", b"two"]
    assert reason_for(tmp_path, tmp_path / "state", "a/sub") is Reason.NOT_A_REGULAR_FILE


def add_link(tar, name, target, kind=tarfile.LNKTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    tar.addfile(member)


def add_file(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def test_a_hard_link_is_the_file_before_it(tmp_path):
    """`tar` writes the second name of a file as a link to the first."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_file(tar, "a/1.jpg", b"first")
        add_link(tar, "a/2.jpg", "./a/1.jpg")
        add_link(tar, "a/3.jpg", "a/2.jpg")
        add_file(tar, "a/1.jpg", b"second")
        add_link(tar, "a/4.jpg", "a/5.jpg")
        add_file(tar, "a/5.jpg", b"too late")
    assert fetch(tmp_path, tmp_path / "state", "a/2.jpg", "a/3.jpg") == [b"first", b"first"]
    assert reason_for(tmp_path, tmp_path / "state", "a/4.jpg") is Reason.NOT_A_REGULAR_FILE


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_not_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a/x.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    assert reason_for(tmp_path, tmp_path / "state", "a/x.jpg") is Reason.NOT_A_REGULAR_FILE


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/passwd", "is an absolute path outside"),
        ("//etc/passwd", "is an absolute path outside"),
        ("../x", "leads out of"),
        ("a/../../x", "leads out of"),
        ("a/\0", "holds a NUL character"),
    ],
)
def test_paths_out_of_the_folder_are_refused(tmp_path, path, message):
    inner = tmp_path / "data"
    inner.mkdir()
    (tmp_path / "x").write_bytes(b"secret")
    write_tar(inner / "a.tar", {"../x": b"in tar"})
    with pytest.raises(Rejected, match=message) as caught:
        fetch(inner, tmp_path / "state", path)
    assert caught.value.reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize("folder", ["data", "data[1]", "da*ta", "data{1,2}"])
def test_absolute_paths_into_the_folder_are_found(tmp_path, folder):
    inner = tmp_path / "there" / folder
    (inner / "b[2]").mkdir(parents=True)
    (inner / "b[2]" / "*.jpg").write_bytes(b"file")
    write_tar(inner / "a.tar", {"a/[1].jpg": b"in tar"})
    (tmp_path / "link").symlink_to("there")
    for root in (inner, tmp_path / "link" / folder):
        for base in (inner, root):
            paths = [f"{base}/a/[1].jpg", f"{base}/./b[2]/x/../*.jpg"]
            assert fetch(root, tmp_path / "state", *paths) == [b"in tar", b"file"]
    assert fetch(inner, tmp_path / "state", "x/../b[2]/*.jpg") == [b"file"]
    assert reason_for(inner, tmp_path / "state", f"{inner}2/x") is Reason.UNSAFE_PATH


@pytest.mark.parametrize("suffix", [".7z", ".rar", ".tar.lz4"])
def test_an_archive_that_is_not_read_is_named(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    with pytest.raises(
        Rejected, match=rf"a\{suffix} is a .* archive, which is not read: unpack it"
    ):
        fetch(tmp_path, tmp_path / "state", "a/1.jpg")
    assert unread_archives(tmp_path)
    (tmp_path / "a").mkdir()
    assert unread_archives(tmp_path) == []


def test_missing(tmp_path):
    write_tar(tmp_path / "a.tar", {"a/1": b"1"})
    for image in ("a/2", "b/1", "a", "x" * 5000):
        assert reason_for(tmp_path, tmp_path / "state", image) is Reason.MISSING_IMAGE


def test_tars_are_read_once_and_again_when_changed(tmp_path):
    write_tar(tmp_path / "a.tar", {"a/1": b"1"})
    write_tar(tmp_path / "b.tar", {"b/1": b"1"})
    read = []
    with TarIndex(tmp_path / "state") as index:
        for _ in range(2):
            index.update(find_tars(tmp_path), lambda tar: read.append(tar.name))
        write_tar(tmp_path / "b.tar", {"b/2": b"22"})
        index.update(find_tars(tmp_path), lambda tar: read.append(tar.name))
        assert read == ["a.tar", "b.tar", "b.tar"]
        assert index.find(b"b/1") == []
        assert index.find(b"b/2")[0].size == 2
        (tmp_path / "b.tar").unlink()
        index.update(find_tars(tmp_path))
        assert index.find(b"b/2") == []


@pytest.mark.parametrize("cut", [1024 + 100, 1024 + 900, 4096, 5120, 5120 + 100])
def test_damaged_tars_are_told(tmp_path, cut):
    write_tar(tmp_path / "a.tar", {f"a/{i}": b"1" * 100 for i in range(5)})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:cut])
    with TarIndex(tmp_path / "state") as index:
        index.update(find_tars(tmp_path))
        (fault,) = index.faults()
        assert fault.startswith("a.tar is damaged (byte ")
        assert index.find(b"a/0")


def test_a_header_of_noise_in_the_middle_is_told(tmp_path):
    write_tar(tmp_path / "a.tar", {f"a/{i}": b"1" * 100 for i in range(5)})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[2048:2560] = b"\x55" * 512
    (tmp_path / "a.tar").write_bytes(data)
    with TarIndex(tmp_path / "state") as index:
        index.update(find_tars(tmp_path))
        (fault,) = index.faults()
        assert "a.tar is damaged (byte 2,048: no header of a tar up to byte 3,072)" in fault
        found = [index.find(f"a/{i}".encode()) for i in range(5)]
        assert [bool(members) for members in found] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", b"<html>", "cannot be read as a tar"),
        ("a.tar", b"", "cannot be read as a tar"),
        ("a.tar.gz", b"no gzip", "cannot be read as a tar"),
        ("a.tar", b"\x1f\x8bno gzip", "cannot be read as a tar"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfdno zstd", "its zstd data break off"),
        ("a.tar", b"BZhno bzip2", "its bzip2 data break off"),
        ("a.zip", b"PK\x03\x04no zip", "the directory at its end is not sound"),
        ("a.zip", b"7z\xbc\xaf\x27\x1c...", "it is a 7-Zip archive, which is not read; fetch"),
        ("a.tar", b"Rar!\x1a\x07", "it is a RAR archive"),
        ("a.tar", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ],
)
def test_files_that_are_no_tars(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message), TarIndex(tmp_path / "state") as index:
        index.update(find_tars(tmp_path))


def test_two_tars_of_one_stem(tmp_path):
    write_tar(tmp_path / "a.tar", {})
    write_tar(tmp_path / "a.tgz", {}, mode="w:gz")
    with pytest.raises(SourceError, match=r"a\.tar and a\.tgz"):
        find_tars(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.integers(0, 99), st.binary(max_size=2000), min_size=1, max_size=20))
def test_every_file_is_found_with_its_bytes(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("tar")
    files = {f"s/{number}.bin": data for number, data in contents.items()}
    write_tar(folder / "s.tar", files)
    assert fetch(folder, folder / "state", *files) == list(files.values())


def test_member_name():
    assert member_name("./a//b/./c") == b"a/b/c"
