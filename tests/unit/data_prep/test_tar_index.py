import io
import tarfile
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_set import write_tar

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


def test_tar_and_folder_side_by_side(tmp_path):
    write_tar(tmp_path / "a.tar", {"a/1": b"tar"})
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "1").write_bytes(b"folder")
    (tmp_path / "a" / "sub" / "2").write_bytes(b"two")
    assert fetch(tmp_path, tmp_path / "state", "a/1", "a/sub/2") == [b"tar", b"two"]
    assert reason_for(tmp_path, tmp_path / "state", "a/sub") is Reason.NOT_A_REGULAR_FILE


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_not_followed(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a/x.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    assert reason_for(tmp_path, tmp_path / "state", "a/x.jpg") is Reason.NOT_A_REGULAR_FILE


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a/\0"])
def test_paths_out_of_the_folder_are_refused(tmp_path, path):
    inner = tmp_path / "data"
    inner.mkdir()
    (tmp_path / "x").write_bytes(b"secret")
    write_tar(inner / "a.tar", {"../x": b"in tar"})
    assert reason_for(inner, tmp_path / "state", path) is Reason.UNSAFE_PATH


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
        assert index.damaged() == ["a.tar"]
        assert index.find(b"a/0")


def test_a_header_of_noise_in_the_middle_is_told(tmp_path):
    write_tar(tmp_path / "a.tar", {f"a/{i}": b"1" * 100 for i in range(5)})
    data = bytearray((tmp_path / "a.tar").read_bytes())
    data[2048:2560] = b"\x55" * 512
    (tmp_path / "a.tar").write_bytes(data)
    with TarIndex(tmp_path / "state") as index:
        index.update(find_tars(tmp_path))
        assert index.damaged() == ["a.tar"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar", b"<html>", "cannot be read as a tar"),
        ("a.tar", b"", "cannot be read as a tar"),
        ("a.tar.gz", b"no gzip", "cannot be read as a tar"),
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
