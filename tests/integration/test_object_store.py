"""Conversion, preparation and training in a bucket of an S3 server on this machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import ROOT, Run
from moto.server import ThreadedMotoServer

from data_prep.mirror import open_workspace

OURS = [sys.executable, "-m", "data_prep"]
SECRET = "tH1s-iS-tHe-sEcReT"
URL = "s3://data/sets/W"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[Any]:
    """A client of the server; what is started meanwhile finds it by the usual variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    caches = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "XDG_CACHE_HOME": str(caches / "cache"),
            "ENERGON_LOCAL_COPY_TMP_DIR": str(caches / "copies"),
        }.items():
            patch.setenv(name, value)
        for name in ("MSC_CONFIG", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        client = boto3.client("s3")
        client.create_bucket(Bucket="data")
        yield client
    server.stop()


def variables() -> dict[str, str]:
    more = ("XDG_CACHE_HOME", "ENERGON_LOCAL_COPY_TMP_DIR")
    return {n: v for n, v in os.environ.items() if n.startswith("AWS_") or n in more}


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OURS, *map(str, arguments)], capture_output=True, text=True)


def done(*arguments: object) -> str:
    finished = call(*arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert SECRET not in finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def names(store: Any, folder: str) -> list[str]:
    """Objects of a folder, without the state of the conversion."""
    listed = store.list_objects_v2(Bucket="data", Prefix=f"{folder}/").get("Contents", [])
    keys = [item["Key"] for item in listed if ".data_prep/" not in item["Key"]]
    return [key[len(folder) + 1 :] for key in keys]


def objects(store: Any, folder: str) -> dict[str, bytes]:
    """Their contents."""
    return {
        name: store.get_object(Bucket="data", Key=f"{folder}/{name}")["Body"].read()
        for name in names(store, folder)
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def prepared(store, drawn) -> str:
    """The shared shards, made in the bucket."""
    source = ["--data-dir", drawn, "--output-dir", URL, "--workers", "1", "--text-only", "keep"]
    assert f"Next: python -m data_prep prepare {URL} --split 8,1,1" in done("cambrian", *source)
    assert f"{URL} is prepared; shards: train 8, val 1, test 1" in done("prepare", URL)
    return URL


def test_the_bucket_holds_what_a_folder_would(store, prepared, shards):
    found, expected = objects(store, "sets/W"), files(shards)
    assert {name: found.get(name) for name in expected} == expected
    meta = {name for name in found if name.startswith(".nv-meta/")}
    assert meta == {f".nv-meta/{p.name}" for p in (shards / ".nv-meta").iterdir()}
    for name in (".info.json", "split.yaml", "dataset.yaml"):
        assert found[f".nv-meta/{name}"] == (shards / ".nv-meta" / name).read_bytes()
    assert "was prepared like this already" in done("prepare", URL)


def test_training_from_the_bucket_is_training_from_a_folder(train, prepared, reference):
    def run(name: str, *overrides: str) -> Run:
        words = train.command(name, (f"data.path={prepared}", *overrides))[3:]
        finished = train.warm.run(words, ranks=1, variables=variables(), cwd=ROOT)
        assert finished.returncode == 0, finished.stderr[-8000:]
        assert SECRET not in finished.stdout + finished.stderr
        return Run(folder=train.folder(name))

    first = run("from_bucket", "trainer.stop_at_step=3")
    assert first.values("loss") == reference.values("loss")[:3]
    assert first.validation()[3] == reference.validation()[3]
    checkpoint = first.checkpoint(3)
    again = run("from_bucket_on", "trainer.stop_at_step=4", f"trainer.resume={checkpoint}")
    assert again.values("loss") == reference.values("loss", 4)[:1]
    assert again.ledger() == {4: reference.ledger()[4]}
    for folder in (first.folder, again.folder):
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            assert SECRET.encode() not in path.read_bytes(), path
    assert f"path: {prepared}" in (first.folder / "config.yaml").read_text()


def test_killed_at_several_moments_and_resumed_elsewhere(store, drawn, tmp_path):
    options = ["--data-dir", str(drawn), "--shard-size", "4", "--shuffle-seed", "5"]
    done("cambrian", *options, "--output-dir", tmp_path / "W", "--workers", "1")
    expected = files(tmp_path / "W")
    num_shards = sum(name.endswith(".tar") for name in expected)
    command = ["cambrian", *options, "--output-dir", "s3://data/killed", "--workers", "2"]
    seen = 0
    for number in (0, num_shards // 6, num_shards // 3):
        process = subprocess.Popen([*OURS, *command], stderr=subprocess.DEVNULL)
        while process.poll() is None and seen < number + 1:
            seen = sum(name.endswith(".tar") for name in names(store, "killed"))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "manifest.json" not in names(store, "killed")
        shutil.rmtree(open_workspace("s3://data/killed").root)  # another machine goes on
        if not number:
            finished = call("prepare", "s3://data/killed")
            assert finished.returncode == 1
            assert "error: the conversion into s3://data/killed is not finished" in finished.stderr
    text = done(*command)
    there = re.search(rf"(\d+) of {num_shards} shards are there; making the rest", text)
    # a shard whose record came too late is made again, by each of two workers
    assert there, text
    assert int(there[1]) >= seen - 2
    assert objects(store, "killed") == expected
    assert "s3://data/killed is complete; nothing to do" in done(*command)


def test_refusals_in_one_line(store, prepared, drawn, monkeypatch):
    source = ["cambrian", "--data-dir", drawn, "--output-dir"]
    for arguments, message in (
        ([*source, "s3://nowhere/W"], "s3://nowhere/W cannot be used: "),
        ([*source, "msc://nobody/W"], 'msc://nobody/W cannot be used: Profile "nobody" not found'),
        ([*source, f"s3://me:{SECRET}@data/W"], "credentials and endpoints belong into the env"),
        ([*source, URL, "--reencode"], f"{URL} was begun with other settings"),
        (["prepare", "s3://data/nothing"], "s3://data/nothing holds no shards"),
        (["stats", URL], "this command reads shards on a disk"),
        (["verify", URL], "this command reads shards on a disk"),
    ):
        finished = call(*arguments)
        assert finished.returncode == 1
        assert message in finished.stderr
        assert len(finished.stderr.splitlines()) == 1, finished.stderr
        assert SECRET not in finished.stdout + finished.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    finished = call("prepare", URL)
    assert "Could not connect" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_a_profile_of_the_client(store, prepared, tmp_path, monkeypatch):
    """`msc://`, as Energon knows it, with the profile in a file of the client's own."""
    profile = tmp_path / "msc.yaml"
    provider = "{type: s3, options: {base_path: data/sets}}"
    profile.write_text(f"profiles: {{store: {{storage_provider: {provider}}}}}\n")
    monkeypatch.setenv("MSC_CONFIG", str(profile))
    assert "was prepared like this already" in done("prepare", "msc://store/W")
    examine = "from dct_vl.training.processes.doctor import check_data as c; print(c('{}'))"
    command = [sys.executable, "-c", examine.format("msc://store/W")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["ok", "data", "msc://store/W"]


def test_an_index_that_lacks_shards_is_refused(store, prepared):
    from dct_vl.training.processes.doctor import check_data

    assert check_data(prepared).status == "ok"
    key = "sets/W/.nv-meta/.info.json"
    before = store.get_object(Bucket="data", Key=key)["Body"].read()
    short = re.sub(rb',\s*"pretrain-000009.tar": \d+', b"", before)
    assert short != before
    try:
        store.put_object(Bucket="data", Key=key, Body=short)
        finding = check_data(prepared)
    finally:
        store.put_object(Bucket="data", Key=key, Body=before)
    assert finding.status == "FAIL"
    assert "lacks 1 of 10 shards of the manifest (pretrain-000009.tar)" in finding.detail
    assert f"run `python -m data_prep prepare {URL}`" in finding.detail
