"""The benchmark runs, and its file holds the figures by their names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "data_prep.py"


@pytest.mark.slow
def test_quick_run(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = {
        row["name"]: row for row in json.loads((tmp_path / "r.json").read_bytes())["results"]
    }
    names = {"jpeg_decode_ratio", "jpeg_structure_ratio", "png_ratio", "scaling_1_to_2"}
    assert names <= set(results)
    assert all(results[name]["value"] > 0 and results[name]["unit"] == "x" for name in names)
    assert results["jpeg_decode"]["peer_value"] > 0
    assert results["rss_2k_mb"]["value"] < 2000
    assert results["second_run_2k_percent"]["value"] < 50
    assert {"messages_ratio", "parquet_ratio", "parquet_rss_2k_mb"} <= set(results)
    assert done.stdout.count("measurement") == 1, "one table"
    assert "figures of --quick mean nothing" in done.stdout
    assert results["prepare_20_shards_seconds"]["value"] > 0
