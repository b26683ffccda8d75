"""URLs of folders in object stores, before any store is asked."""

import subprocess
import sys

import pytest

from data_prep.mirror import MirroredWorkspace, open_workspace
from data_prep.remote import WorkspaceError, energon_url, folder_at, is_remote, is_url, readable
from data_prep.workspace import Workspace


@pytest.mark.parametrize(
    ("typed", "energons"),
    [
        ("s3://bucket/a/W", "msc://_s3-bucket/a/W"),
        ("gs://bucket", "msc://_gs-bucket"),
        ("msc://profile/W", "msc://profile/W"),
        ("/data/W", "/data/W"),
        ("s3:/data/W", "s3:/data/W"),
        ("file://x", "file://x"),
    ],
)
def test_urls_as_energon_takes_them(typed, energons):
    assert energon_url(typed) == energons
    assert readable(f"{energons} is not there") == f"{typed} is not there"


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/W", "s3://bucket:9000/W", "msc://a@b/W"])
def test_credentials_and_endpoints_in_a_url_are_refused_and_not_repeated(url):
    with pytest.raises(WorkspaceError, match="belong into the environment") as caught:
        folder_at(url)
    assert "secret" not in str(caught.value)


def test_local_paths_stay_what_they_are(tmp_path):
    assert not is_url(tmp_path)
    assert folder_at(tmp_path) == tmp_path
    assert not is_remote(folder_at(str(tmp_path)))
    assert type(open_workspace(str(tmp_path))) is Workspace


def test_two_buckets_have_two_mirrors(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mirrors = [open_workspace(url) for url in ("s3://a/W", "s3://b/W", "s3://a/W/")]
    assert all(isinstance(mirror, MirroredWorkspace) for mirror in mirrors)
    assert mirrors[0] == mirrors[2] != mirrors[1]
    assert mirrors[0].root.parent == tmp_path / "dct_vl" / "outputs"


def test_a_store_whose_package_is_missing_is_said_in_one_line():
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from data_prep.cli import app\n"
        "sys.argv = ['data_prep', 'prepare', 's3://bucket/W']\n"
        "app()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: s3://bucket/W needs boto3: pip install '.[s3]'\n"
