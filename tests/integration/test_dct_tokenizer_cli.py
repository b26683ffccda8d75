"""`python -m dct_tokenizer` as a user runs it, in a process of its own."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dct_tokenizer
from dct_tokenizer import build_tokenizer, list_presets


def run(*arguments: object, cwd=None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dct_tokenizer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(values).resize((300, 200)).save(path)
    return path


def test_list_names_every_preset():
    result = run("list")
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in list_presets())
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert rows["dct28_420"]["tokens"] * 4 == rows["pixel"]["tokens"]
    assert all(row["summary"] for row in rows.values())


def test_cost_of_sizes_and_clips():
    result = run("cost", "pixel", "dct28_420_t8", "--size", "448x448x16", "--json")
    stock, ours = json.loads(result.stdout)
    assert stock["num_llm_tokens"] == 16 * ours["num_llm_tokens"]
    assert ours["flops_ratio"] < 0.08
    table = run("cost", "pixel", "--size", "640x480", "--model", "7b")
    assert "391" in table.stdout
    assert "7B" in table.stdout


def test_show_writes_a_picture_and_a_page(picture, tmp_path):
    target = tmp_path / "out" / "view.png"
    result = run("show", picture, "-t", "dct28_420", "-t", "adaptive", "-o", target)
    assert result.returncode == 0, result.stderr
    assert "PSNR" in result.stdout
    assert Image.open(target).format == "PNG"
    assert target.with_suffix(".html").read_text().startswith("<!doctype html>")


def test_check_passes_on_a_preset_and_on_a_yaml_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nfamily: block\ncell: 20\nluma_keep: 18\nchroma_keep: 10\n")
    result = run("check", "dct28_420", path, "--clause", "plan", "--clause", "start")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("PASS") == 4
    assert "4 of 4 clauses hold over 2 tokenizers" in result.stdout


def test_check_fails_with_status_one(tmp_path):
    path = tmp_path / "poor.yaml"
    path.write_text("name: poor\nfamily: block\ncell: 56\nluma_keep: 2\nchroma_keep: 1\n")
    result = run("check", path, "--clause", "decode", "--clause", "config")
    assert result.returncode == 1
    assert "FAIL poor" in result.stdout
    assert "1 of 2 clauses hold" in result.stdout


CONTRIBUTING = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"
#: a fenced block whose first line is a comment with the file's path
_BLOCK = re.compile(r"```(?:yaml|python)\n# (dct_tokenizer/\S+)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def written_by_the_book(tmp_path_factory):
    """The package with every file that CONTRIBUTING.md says to write, and the presets' names."""
    root = tmp_path_factory.mktemp("book")
    shutil.copytree(Path(dct_tokenizer.__file__).parent, root / "dct_tokenizer")
    blocks = _BLOCK.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    for path, text in blocks:
        assert not (root / path).exists(), path
        (root / path).write_text(text, encoding="utf-8")
    return root, [Path(path).stem for path, _ in blocks if path.endswith(".yaml")]


def test_the_examples_of_contributing_pass_the_checks(written_by_the_book):
    root, presets = written_by_the_book
    assert sorted(presets) == ["dct28_k20", "square4"]
    for name in presets:
        # the working directory comes before installed packages for `python -m`
        result = run("check", name, cwd=root)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "FAIL" not in result.stdout
    cost = json.loads(run("cost", "square4", "--size", "900x100", "--json", cwd=root).stdout)
    assert cost[0]["num_llm_tokens"] == 16


def test_the_class_of_contributing_is_short():
    code = dict(_BLOCK.findall(CONTRIBUTING.read_text(encoding="utf-8")))
    assert len(code["dct_tokenizer/families/square.py"].splitlines()) <= 32


def test_stats_are_gathered_and_used(picture, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "shard-000.tar", "w") as tar:
        content = picture.read_bytes()
        info = tarfile.TarInfo("a.0.png")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    target = tmp_path / "stats.json"
    result = run("stats", shards, "-o", target, "-t", "dct28_lp")
    assert result.returncode == 0, result.stderr
    assert "1 images" in result.stdout
    natural = build_tokenizer("dct28_lp").whitening_statistics()
    measured = build_tokenizer("dct28_lp", statistics=str(target)).whitening_statistics()
    assert not np.allclose(natural.std, measured.std)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "dct28"], "known: dct28_lp"),
        (["check"], "--all"),
        (["check", "pixel", "--clause", "plans"], "known: plan"),
        (["cost", "pixel", "--size", "640"], "WIDTHxHEIGHT"),
        (["cost", "pixel", "--size", "1x500"], "500x1"),
        (["cost", "--model", "3b"], "known: 3b25"),
        (["cost", "pixel", "--min-pixels", "9", "--max-pixels", "3"], "min_pixels=9"),
    ],
)
def test_mistakes_are_one_line_and_status_two(arguments, words):
    result = run(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_mistakes_end_alike_under_dct_vl():
    command = [sys.executable, "-m", "dct_vl", "tokenizer", "check", "dct28"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (2, run("check", "dct28").stderr)
    assert result.stderr.startswith("error: ")


def test_the_benchmark_runs_and_writes_its_results(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "tokenizer.py"
    target = tmp_path / "results.json"
    command = [sys.executable, str(script), "--quick", "--json", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    content = json.loads(target.read_text())
    by_name = {line["name"]: line for line in content["results"]}
    assert content["machine"]["transformers"]
    assert by_name["prep_ratio"]["unit"] == "x"
    assert by_name["prep_presized_ratio"]["value"] > by_name["prep_ratio"]["value"] > 1
    assert by_name["prep_pixel"]["peer_value"] > 0
