import random
import re
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_set import encoded, entry, jpeg, picture, write_json, write_tar
from rich.console import Console
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.executor import InProcessExecutor
from data_prep.options import OptionError, Options
from data_prep.progress import Reporter
from data_prep.run import Job, run
from data_prep.shard_pages import pick_samples, preview_page, stats_page
from data_prep.stats import (
    TokenCounts,
    as_json,
    count_tokens,
    find_tokenizers,
    summarize,
    tally_folder,
)
from dct_tokenizer import build_tokenizer, list_presets
from dct_vl.pages.bars import bars, histogram

BOUNDS = {"min_pixels": 784, "max_pixels": 43_904}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("stats")
    data = root / "data"
    data.mkdir()
    write_tar(data / "ai2d.tar", {f"ai2d/{i}.jpg": jpeg(i, (56 * (i + 1), 56)) for i in range(4)})
    write_tar(data / "vg.tar", {"vg/0.png": encoded(picture(9, (112, 224)), "PNG")})
    two = entry("two", ["ai2d/0.jpg", "ai2d/1.jpg"], question="<image><image>Same?", answer="No")
    two["conversations"] += entry("", question="<b>Why?</b>", answer="x" * 1000)["conversations"]
    entries = [entry(i, f"ai2d/{i}.jpg", answer="a" * i + "b") for i in range(4)]
    entries += [two, entry("png", "vg/0.png"), entry("words", question="Hi"), "broken"]
    write_json(data, entries)
    job = Job(data_dir=data, output_dir=root / "W", json=None, options=Options(text_only="keep"))
    run(job, InProcessExecutor(), Reporter(Console(quiet=True)))
    return root / "W"


@pytest.fixture(scope="module")
def tally(shards):
    return tally_folder(shards, workers=2)


def counted(tally, *names) -> list[TokenCounts]:
    return list(count_tokens(tally.sizes, find_tokenizers(names), **BOUNDS))


def test_tally(tally):
    assert tally.samples == {"ai2d": 5, "vg": 1, "text": 1}
    assert tally.sizes == {
        (56, 56): 2,
        (56, 112): 2,
        (56, 168): 1,
        (56, 224): 1,
        (224, 112): 1,
    }
    assert tally.images == {0: 1, 1: 5, 2: 1}
    assert tally.turns == {1: 6, 2: 1}
    assert tally.answer_chars == Counter([1, 2, 3, 4, 2, 1000, 6, 6])


def test_figures(tally):
    figures = as_json(tally, counted(tally, "pixel", "dct28_420", "adaptive_rms4"), **BOUNDS)
    assert (figures["samples"], figures["images"]) == (7, 7)
    assert figures["width"]["max"] == 224
    assert figures["aspect_ratio"]["min"] == 0.5
    assert figures["visual_tokens"]["pixel"]["histogram"] == {4: 2, 8: 2, 12: 1, 16: 1, 32: 1}
    assert figures["visual_tokens"]["dct28_420"]["sum"] == 2 + 4 + 3 + 4 + 8
    assert figures["visual_tokens_known_after_decoding"] == ["adaptive_rms4"]
    assert "adaptive_rms4" not in figures["visual_tokens"]
    assert figures["answer_chars"]["max"] == 1000


def test_images_count_whose_sizes_nobody_wrote_down(tmp_path):
    talk = b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}'
    known = talk[:-1] + b', "image": "a.jpg", "width": 56, "height": 84}'
    jpg = jpeg(1, (56, 84))
    parts = {f"{n}.{part}": data for n in range(2) for part, data in (("jpg", jpg), ("json", talk))}
    command = ["stats", str(tmp_path), "--tokenizer", "pixel", "--html"]
    write_tar(tmp_path / "a.tar", parts)
    done = CliRunner().invoke(app, command)
    assert "2 samples, 2 images" in done.output
    assert "median image" in (tmp_path / "stats.html").read_text()
    write_tar(tmp_path / "a.tar", {**parts, "2.jpg": jpg, "2.json": known})
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "3 samples, 3 images" in done.output
    assert "sizes unknown: the JSON of 2 images has no width and height" in done.output


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=60))
def test_summary_is_numpys(values):
    summary = summarize(Counter(values))
    assert summary["mean"] == pytest.approx(np.mean(values), abs=1e-3)
    for name, percent in (("p5", 5), ("median", 50), ("p95", 95)):
        assert summary[name] == np.percentile(values, percent, method="inverted_cdf")


def test_summary_of_nothing():
    assert summarize(Counter()) == {"count": 0}


def test_every_preset_is_counted_as_it_plans():
    """Each has a row; the counts are those that training will see."""
    rng = random.Random(1)
    sizes = Counter({(rng.randint(20, 900), rng.randint(20, 900)): i for i in range(1, 60)})
    found = list(count_tokens(sizes, find_tokenizers([]), **BOUNDS))
    assert [one.tokenizer for one in found] == list_presets()
    for one in found:
        tokenizer = build_tokenizer(one.tokenizer, **BOUNDS)
        assert one.from_sizes == tokenizer.counts_from_header
        expected: Counter[int] = Counter()
        for size, number in sizes.items() if one.from_sizes else ():
            expected[tokenizer.plan(*size).num_llm_tokens] += number
        assert one.images == expected, one.tokenizer
    assert {one.tokenizer for one in found if not one.from_sizes} == {"adaptive_rms4"}


def test_a_file_of_ones_own_is_counted(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nfamily: pixel\ncell: 28\nmax_pixels: 9999999\n")
    (one,) = count_tokens(Counter({(480, 640): 3}), find_tokenizers([str(path)]), **BOUNDS)
    assert (one.tokenizer, one.images) == ("mine", {12: 3}), "the bounds are the command's"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: .*No such file"),
        ("[1]", "holds a list; expected the keys of a preset"),
        ("a: [", "cannot be read"),
        ("name: mine\nfamily: blok", "unknown family 'blok'; known: block"),
    ],
)
def test_files_that_make_no_tokenizer(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=f"--tokenizer: .*{message}"):
        find_tokenizers([str(path)])


def test_sizes_that_a_tokenizer_refuses_are_counted_too():
    sizes = Counter({(10, 4000): 2, (56, 56): 5})
    (one,) = count_tokens(sizes, find_tokenizers(["pixel"]), **BOUNDS)
    assert (one.images, one.refused) == ({4: 5}, 2)
    (none,) = count_tokens(sizes, find_tokenizers(["dct28_420"]), min_pixels=1, max_pixels=800)
    assert (none.images, none.refused) == (Counter(), 7)


def test_many_sizes_are_quick():
    """Planned in any order, these take ten times as long: the arrays of no plan are reused."""
    rng = random.Random(0)
    sizes = Counter((rng.randint(50, 1500), rng.randint(50, 1500)) for _ in range(20_000))
    started = time.process_time()
    (one,) = count_tokens(sizes, find_tokenizers(["pixel"]), min_pixels=784, max_pixels=1_003_520)
    assert one.images.total() == 20_000
    assert time.process_time() - started < 1


def test_processes_that_prepare_shards_stay_light():
    """They import the command line (the spawned main module) and the task; torch is 200 MB."""
    code = "import data_prep.cli, data_prep.shard_task, data_prep.stats, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "dct_tokenizer.base"} & set(done.stdout.split())


def test_stats_page_holds_all_it_needs(shards, tally):
    names = ("pixel", "dct14", "dct28_420", "dct28_lp", "dct21_420", "adaptive_rms4")
    figures = as_json(tally, counted(tally, *names), **BOUNDS)
    page = stats_page(
        "t",
        tally,
        figures,
        samples=pick_samples(shards, 7, seed=0),
        manifest={"entries": 8, "kept": 7, "rejected": {"malformed_entry": 1}, "repairs": {}}
        | {"conversions": {"png": 1}},
    )
    assert page.count("<svg") == 11
    assert "Visual tokens: pixel, dct14<" in page
    assert "Visual tokens: dct28_420, dct28_lp<" in page
    assert "Known after decoding only: adaptive_rms4." in page
    assert page.count("data:image/jpeg;base64,") == 7
    assert "rejected: malformed entry" in page
    assert not re.search(r'(src|href)="https?:', page), "nothing is fetched"
    assert "&lt;b&gt;Why?&lt;/b&gt;" in page, "texts are no markup"
    assert "x" * 399 + "…" in page
    assert "x" * 400 not in page


def test_preview_picks_from_many_shards(shards):
    samples = pick_samples(shards, 5, seed=1)
    assert len({one.shard for one in samples}) == 5
    assert samples == pick_samples(shards, 5, seed=1)
    assert samples != pick_samples(shards, 5, seed=2)
    assert len(pick_samples(shards, 100, seed=0)) == 7, "no more than there are"
    assert preview_page("t", samples).count("<article>") == 5


@settings(max_examples=6)
@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 99), min_size=1, max_size=80))
def test_plots_of_anything(counts):
    named = {f"s{key}": number for key, number in counts.items()}
    assert histogram("a", Counter(counts), label="x", description="y").startswith("<svg")
    assert bars("b", named, label="x", description="y").startswith("<svg")
