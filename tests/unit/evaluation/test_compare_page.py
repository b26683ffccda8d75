"""The page of two runs: every number of it computed once more, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import numpy as np
import pytest
from compared_runs import STEP, answer, write_lines, write_run
from PIL import Image

from dct_tokenizer import build_tokenizer
from dct_tokenizer.decode import decode_rgb
from dct_vl.evaluation.compare import read_runs, write_comparison
from dct_vl.evaluation.compare.gallery import choose
from dct_vl.evaluation.compare.pairing import pair
from dct_vl.inputs.shard_reader import read_split

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> $x_1$ {{ 7 * 7 }}'
#: right answers of both runs to two questions each about six samples, and to one without an image
OURS = "110100110110 1".replace(" ", "")
THEIRS = "010110010010 1".replace(" ", "")


@pytest.fixture(scope="module")
def samples(shards) -> list[Any]:
    """Six held-out samples with one image each."""
    found = [s for s in read_split(str(shards), "val") if len(s.images) == 1]
    assert len(found) >= 6
    return found[:6]


@pytest.fixture(scope="module")
def lines(samples):
    """lines("110…", tokens) → answers to two questions about each sample, and one without."""

    def make(rights: str, tokens: int, **changes: Any) -> list[dict[str, Any]]:
        asked = [(s.key, turn) for s in samples for turn in (1, 3)]
        found = [
            answer(
                key,
                int(right),
                turn=turn,
                num_visual_tokens=tokens,
                source="charts" if place < 4 else "shapes",
                **changes,
            )
            for place, ((key, turn), right) in enumerate(zip(asked, rights[:12], strict=True))
        ]
        return [*found, answer("text", int(rights[12]), num_visual_tokens=0)]

    return make


@pytest.fixture(scope="module")
def folders(shards, tiny_model, lines, tmp_path_factory) -> list[Path]:
    """Two runs that differ in tokenizer, speed and memory."""
    root = tmp_path_factory.mktemp("compared")
    ours = write_run(
        root / "ours",
        data=shards,
        model=tiny_model,
        losses=[6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        rates=[10, 20, 50, 30, 40, 60],
        val_losses={3: 3.5, 6: 1.25},
    )
    theirs = write_run(
        root / "theirs",
        data=shards,
        model=tiny_model,
        overrides=["tokenizer=pixel", "optim.lr=0.5"],
        losses=[6.0, 5.5, 5.0, 4.5, 4.0, 3.5],
        rates=[1, 2, 5, 3, 4, 6],
        peak=6.0,
        step={**STEP, "num_cells": 1600, "num_cell_pairs": 192_000, "num_visual_tokens": 400},
    )
    write_lines(ours / "answers.jsonl", lines(OURS, 4))
    write_lines(theirs / "answers.jsonl", lines(THEIRS, 16))
    return [ours, theirs]


@pytest.fixture(scope="module")
def page(folders) -> Path:
    return write_comparison(read_runs(folders), folders[0].parent / "out")


def tree_of(page: Path) -> Element:
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    return parser.parse(page.read_text())


def text_of(element: Element) -> str:
    return re.sub(r"\s+", " ", "".join(element.itertext())).strip()


def rows_of(table: Element) -> list[list[str]]:
    rows = [[text_of(c) for c in row if c.tag in ("td", "th")] for row in table.iter("tr")]
    return rows[1:]


def shares(rights: str) -> np.ndarray:
    return np.array([int(letter) for letter in rights[:12]])


def forward_gflops(step: dict[str, Any], cell: int) -> float:
    """Per sample, from the sizes in the tiny model's fixture, term by term."""
    width, depth, hidden, layers, mlp = 32, 2, 64, 2, 96
    vit_mlp = 2 * width
    vit = depth * (
        2 * (4 * width**2 + 2 * width * vit_mlp) * step["num_cells"]
        + 4 * width * step["num_cell_pairs"]
    )
    merger = 2 * ((4 * width) ** 2 + 4 * width * hidden) * step["num_cells"] / 4
    tokens = step["num_text_tokens"] + step["num_visual_tokens"]
    # 4 query heads and 2 key heads of 16
    block = hidden * 64 + 2 * hidden * 32 + 64 * hidden + 3 * hidden * mlp
    llm = layers * (2 * block * tokens + 4 * 64 * step["num_token_pairs"] / 2)
    front_end = build_tokenizer("dct28_420" if cell == 28 else "pixel").front_end(1)
    seen = front_end.flops_per_cell(width, still=True) * step["num_cells"]
    return (vit + merger + llm + seen) / step["num_samples"] / 1e9


def test_the_table_of_runs(page, folders, tiny_model):
    tree = tree_of(page)
    ours, theirs = rows_of(next(tree.iter("table")))
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    output = 2 * 64 * vocabulary * STEP["num_answer_tokens"] / STEP["num_samples"] / 1e9
    more = {**STEP, "num_cells": 1600, "num_cell_pairs": 192_000, "num_visual_tokens": 400}
    flops = [forward_gflops(STEP, 28) + output, forward_gflops(more, 14) + output]
    numbers = json.loads((page.parent / "compare.json").read_text())["runs"]
    assert [run["flops_per_sample"] / 1e9 for run in numbers] == pytest.approx(flops)
    assert float(ours.pop(3)) == pytest.approx(flops[0], rel=6e-3)
    assert float(theirs.pop(3)) == pytest.approx(flops[1], rel=6e-3)
    # medians of six rates; the highest of peak - 0.5 / step; means of the last five losses
    assert ours == ["ours", "dct28_420", "6", "35.0", "1.42", "0.12 s", "3.00", "1.25"]
    assert theirs == ["theirs", "pixel", "6", "3.50", "5.92", "1.2 s", "4.50", "–"]


def test_the_table_of_scores(page):
    tree = tree_of(page)
    ours, theirs = rows_of(list(tree.iter("table"))[1])
    first, second = shares(OURS), shares(THEIRS)
    assert ours[:2] == ["ours", f"{100 * first.mean():.1f} %"]
    assert ours[3:] == ["baseline", "–", "–", "–", "4.00"]
    assert theirs[:2] == ["theirs", f"{100 * second.mean():.1f} %"]
    assert theirs[3] == f"{100 * (second.mean() - first.mean()):+.1f}".replace("-", "−")
    assert theirs[5:] == [
        str(int((second > first).sum())),
        str(int((second < first).sum())),
        "16.0",
    ]
    # all 6⁶ resamples of six samples are few enough to write out
    by_sample = np.stack([first, second]).reshape(2, 6, 2).sum(axis=2)
    picked = np.stack(np.meshgrid(*[range(6)] * 6), axis=-1).reshape(-1, 6)
    every = by_sample[:, picked].sum(axis=2) / 12
    scores = json.loads((page.parent / "compare.json").read_text())["sets"][0]["scores"]
    for name, resampled in (("ours", every[0]), ("theirs", every[1])):
        wanted = np.quantile(resampled, (0.025, 0.975))
        assert scores[name]["interval"] == pytest.approx(wanted, abs=1 / 12 + 1e-9)
    found = scores["theirs"]["difference_interval"]
    wanted = np.quantile(every[1] - every[0], (0.025, 0.975))
    assert found == pytest.approx(wanted, abs=1 / 12 + 1e-9)
    for row, name in ((ours, "ours"), (theirs, "theirs")):
        low, high = scores[name]["interval"]
        assert row[2] == f"{100 * low:.1f} % to {100 * high:.1f} %"
    shown = " to ".join(f"{100 * end:+.1f}" for end in found).replace("-", "−")
    assert theirs[4].removesuffix(" (clear of 0)") == shown
    assert theirs[4].endswith("(clear of 0)") == (found[0] > 0 or found[1] < 0)
    text = text_of(tree)
    assert "12 questions about the images of 6 samples" in text
    assert "1 without an image are not counted" in text


def test_the_table_of_sources(page):
    first, second = shares(OURS), shares(THEIRS)
    assert rows_of(list(tree_of(page).iter("table"))[2]) == [
        [name, str(count), f"{100 * ours.mean():.1f} %", f"{100 * theirs.mean():.1f} %"]
        for name, count, ours, theirs in (
            ("charts", 4, first[:4], second[:4]),
            ("shapes", 8, first[4:], second[4:]),
        )
    ]


def coordinates(svg: Element) -> list[tuple[float, float]]:
    """Points of a chart in the units of its axes, read off its ticks."""

    def scale(axis: str, attribute: str) -> np.ndarray:
        places, values = [], []
        for tick in svg.iter("g"):
            if re.search(rf"-{axis}tick_\d+$", tick.attrib.get("id", "")):
                line = next(e for e in tick.iter("use"))
                places.append(float(line.attrib[attribute]))
                values.append(float(text_of(next(tick.iter("text"))).replace("−", "-")))
        return np.polyfit(places, values, 1)

    across, up = scale("x", "x"), scale("y", "y")
    points = []
    for group in svg.iter("g"):
        # a line with one marker in a run's color: a point, or the cap of its whisker
        uses = list(group.iter("use")) if "-line2d_" in group.attrib.get("id", "") else []
        if len(uses) == 1 and "var(--series" in uses[0].attrib.get("style", ""):
            x, y = (float(uses[0].attrib[name]) for name in ("x", "y"))
            points.append((float(np.polyval(across, x)), float(np.polyval(up, y))))
    return points


def test_the_charts_show_the_points(page):
    charts = [e for e in tree_of(page).iter() if str(e.tag).endswith("svg")]
    runs = json.loads((page.parent / "compare.json").read_text())["runs"]
    heights = [100 * shares(rights).mean() for rights in (OURS, THEIRS)]
    places = {
        "visual tokens a sample": [4, 16],
        "GFLOP a sample, forward": [run["flops_per_sample"] / 1e9 for run in runs],
        "training samples a second": [35, 3.5],
        "peak memory, GiB": [1.5 - 0.5 / 6, 6 - 0.5 / 6],
    }
    assert len(charts) == len(places) + 2
    for chart, (label, wanted) in zip(charts, places.items(), strict=False):
        for element in chart.iter():
            element.tag = str(element.tag).rpartition("}")[2].removeprefix("svg ")
        assert label in text_of(chart)
        found = coordinates(chart)
        # two points, each with the two caps of its whisker
        for place, height in zip(wanted, heights, strict=True):
            assert any(
                (x, y) == pytest.approx((place, height), rel=0.01, abs=0.02) for x, y in found
            ), (label, place, height, found)


def test_disagreements_come_with_what_each_tokenizer_saw(page, samples):
    tree = tree_of(page)
    first, second = shares(OURS), shares(THEIRS)
    differing = {samples[place // 2].key for place in np.flatnonzero(first != second)}
    articles = {text_of(next(a.iter("code"))): a for a in tree.iter("article")}
    assert set(articles) == differing
    assert f"The runs differ on {int((first != second).sum())} of 12 questions." in text_of(tree)
    for sample in samples:
        if sample.key not in articles:
            continue
        article = articles[sample.key]
        shown = []
        for image in article.iter("img"):
            data = base64.b64decode(image.attrib["src"].removeprefix("data:image/png;base64,"))
            shown.append(np.asarray(Image.open(io.BytesIO(data))))
        frames = decode_rgb(sample.images[0])
        np.testing.assert_array_equal(shown[0], frames[0])
        captions = [text_of(caption) for caption in article.iter("figcaption")]
        names = ("dct28_420", "pixel")
        for seen, caption, name in zip(shown[1:], captions[1:], names, strict=True):
            tokenizer = build_tokenizer(name, min_pixels=784, max_pixels=43904)
            plan = tokenizer.plan(*frames.shape[1:3])
            own = tokenizer.decode(tokenizer.encode(tokenizer.cells(frames, plan)), plan)[0]
            np.testing.assert_array_equal(seen, own)
            assert f"{plan.num_llm_tokens} tokens" in caption
        place = 2 * samples.index(sample)
        wanted = [
            [f"Question {1 + 2 * k}?", "yes"]
            + ["✓right: yes" if r[place + k] else "✗wrong: no" for r in (first, second)]
            for k in range(2)
            if first[place + k] != second[place + k]
        ]
        assert rows_of(next(article.iter("table"))) == wanted


def test_examples_show_every_kind(folders, samples):
    (paired,), _ = pair(read_runs(folders))
    two = choose(paired, 2)
    place = {sample.key: 2 * number for number, sample in enumerate(samples)}
    signs = {
        np.sign(int(OURS[place[key] + k]) - int(THEIRS[place[key] + k]))
        for key in two
        for k in range(2)
    } - {0}
    assert signs == {1, -1}


def test_conditions_are_shown(page):
    tree = tree_of(page)
    (box,) = [e for e in tree.iter("section") if e.attrib.get("class") == "warning"]
    assert text_of(box) == (
        "One condition is not the same settings: The runs were trained with other values of "
        "optim.lr."
    )
    checks = [text_of(e) for e in tree.iter("li")]
    assert "✓ sample stream: ours and theirs consumed the same samples in every step." in checks
    settings = {row[0]: row[1:] for row in rows_of(list(tree.iter("table"))[-1])}
    assert settings["optim.lr"] == ["1e-05", "0.5"]
    assert settings["tokenizer.name"] == ["dct28_420", "pixel"]


def test_hostile_text_stays_text(folders, lines, tmp_path):
    hostile = write_lines(
        tmp_path / "h.jsonl", lines(OURS, 4, question=HOSTILE, truth=HOSTILE, answer=HOSTILE)
    )
    page = write_comparison(read_runs(folders, answers={"ours": hostile}), tmp_path / "out")
    tree = tree_of(page)
    assert not list(tree.iter("script"))
    assert not any(str(name).startswith("on") for e in tree.iter() for name in e.attrib)
    assert not any(e.attrib["src"] == "x" for e in tree.iter("img"))
    article = next(tree.iter("article"))
    cells = [text_of(cell) for cell in article.iter("td")]
    assert cells[:2] == [HOSTILE, HOSTILE]
    assert HOSTILE in cells[2]


def test_the_page_needs_no_other_file(page):
    tree = tree_of(page)
    for element in tree.iter():
        for name, value in element.attrib.items():
            if str(name).split("}")[-1] in ("src", "href", "srcset", "poster", "data", "action"):
                assert value.startswith(("data:", "#")), (element.tag, name, value)
    assert "://" not in page.read_text()


def test_the_page_stands_without_data_model_and_ledger(folders, lines, tmp_path):
    for name, rights in (("a", OURS), ("b", THEIRS)):
        folder = write_run(
            tmp_path / name, data="/nowhere", model="/nothing", losses=[1.0], rates=[2.0], peak=None
        )
        write_lines(folder / "answers.jsonl", lines(rights, 4)[:1])
        shutil.rmtree(folder / "ledger")
    tree = tree_of(write_comparison(read_runs([tmp_path / "a", tmp_path / "b"]), tmp_path))
    row = ["dct28_420", "1", "–", "2.00", "–", "2.0 s", "1.00", "–"]
    assert rows_of(next(tree.iter("table"))) == [["a", *row], ["b", *row]]
    text = text_of(tree)
    assert "The images are not at hand" in text
    assert "1 questions about the images of 1 samples" in text


def test_a_benchmarks_pictures_come_from_its_data(folders, samples, tmp_path):
    (tmp_path / "picture.png").write_bytes(samples[0].images[0])
    data = write_lines(
        tmp_path / "qa.jsonl",
        [{"key": "7", "question": "What?", "answers": ["x", "y"], "image": "picture.png"}],
    )
    files = {}
    for name, right in (("ours", 1.0), ("theirs", 0.0)):
        line = {"doc_id": 0, "key": "7", "filtered_resps": ["x"], "exact_match": right}
        files[name] = write_lines(tmp_path / f"{name}_samples_qa.jsonl", [line])
    runs = read_runs(folders, answers=files)
    text = text_of(tree_of(write_comparison(runs, tmp_path)))
    assert "Without --data qa=PATH the images are not at hand" in text
    tree = tree_of(write_comparison(runs, tmp_path, data={"qa": data}))
    with pytest.raises(ValueError, match=r"--data names 'vqa'; .* on qa"):
        write_comparison(runs, tmp_path, data={"vqa": data})
    with pytest.raises(ValueError, match="none does not exist; qa reads"):
        write_comparison(runs, tmp_path, data={"qa": tmp_path / "none"})
    (article,) = tree.iter("article")
    assert len(list(article.iter("img"))) == 3
    assert rows_of(next(article.iter("table")))[0] == ["What?", "x | y", "✓right: x", "✗wrong: x"]


def test_an_unknown_baseline_is_refused_with_the_names(folders, tmp_path):
    with pytest.raises(ValueError, match=r"no run is named 'x'; the runs are ours, theirs"):
        write_comparison(read_runs(folders), tmp_path, baseline="x")
    page = write_comparison(read_runs(folders), tmp_path, baseline="theirs", num_disagreements=0)
    ours, theirs = rows_of(list(tree_of(page).iter("table"))[1])
    assert theirs[3] == "baseline"
    assert ours[3] == f"{100 * (shares(OURS).mean() - shares(THEIRS).mean()):+.1f}"
    assert not list(tree_of(page).iter("article"))


def test_a_browser_shows_it_without_an_error(page, tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(names)} is on the path")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--v=0", f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "Where they disagree" in done.stdout
    assert done.stdout.count("<img") == page.read_text().count("<img") > 0
