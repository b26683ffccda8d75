"""Every odd file is stored upright with the right pixels, or listed with the right reason."""

import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from odd_files import CONVERTED, UNTOUCHED, OddFile, expected_pixels, odd_files
from PIL import Image
from raw_set import encoded, entry, read_shards, write_json, write_tar
from rich.console import Console

from data_prep.executor import InProcessExecutor
from data_prep.images import store_image
from data_prep.options import Options
from data_prep.progress import Reporter
from data_prep.quarantine import Rejected
from data_prep.run import Job, run

FILES = odd_files()
INSTALLED = sorted((Path(matplotlib.get_data_path()) / "images").iterdir())


def assert_pixels(data: bytes, odd: OddFile) -> None:
    """As near to the expected picture as JPEG of quality 95, 4:4:4 comes to it."""
    stored = Image.open(io.BytesIO(data))
    expected = expected_pixels(odd)
    assert stored.format == "JPEG"
    assert stored.getexif().get(0x0112, 1) == 1, "upright without a mark"
    assert stored.size == expected.size
    jpeg = Image.open(io.BytesIO(encoded(expected, quality=95, subsampling=0)))
    assert error(stored, expected) < 1.1 * error(jpeg, expected) + 0.3


def error(image: Image.Image, expected: Image.Image) -> float:
    difference = np.asarray(image.convert("RGB")).astype(int) - np.asarray(expected).astype(int)
    return float(np.abs(difference).mean())


def test_there_are_enough_of_them():
    assert len(FILES) >= 60


@pytest.mark.parametrize("name", [n for n, odd in FILES.items() if isinstance(odd.fate, str)])
def test_stored(name):
    odd = FILES[name]
    stored = store_image(odd.data, Options())
    assert odd.fate == (CONVERTED if stored.conversions else UNTOUCHED), stored.conversions
    if odd.fate == UNTOUCHED:
        assert stored.data == odd.data
    else:
        assert_pixels(stored.data, odd)
    assert (stored.width, stored.height) == Image.open(io.BytesIO(stored.data)).size


@pytest.mark.parametrize("name", [n for n, odd in FILES.items() if isinstance(odd.fate, set)])
def test_rejected(name):
    odd = FILES[name]
    with pytest.raises(Rejected) as caught:
        store_image(odd.data, Options())
    assert caught.value.reason in odd.fate


@pytest.mark.parametrize(
    ("name", "conversions"),
    [
        ("rotated_6", ("rotated",)),
        ("png_palette_one_clear", ("png", "alpha", "palette")),
        ("png_16_bit_grey", ("png", "16_bit")),
        ("png_animated", ("png", "animated")),
        ("gif_animated", ("gif", "animated", "palette")),
        ("cmyk", ("cmyk",)),
        ("png_own_profile", ("png",)),
    ],
)
def test_conversions_are_counted_by_name(name, conversions):
    assert store_image(FILES[name].data, Options()).conversions == conversions


def test_whole_corpus_in_one_run(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    images = {f"odd/{name}.jpg": odd.data for name, odd in FILES.items()}
    images |= {f"odd/{path.name}": path.read_bytes() for path in INSTALLED}
    write_tar(data / "odd.tar", images)
    write_json(data, [entry(path, path) for path in images])
    job = Job(data_dir=data, output_dir=tmp_path / "out", json=None, options=Options())
    summary = run(job, InProcessExecutor(), Reporter(Console(quiet=True)))
    assert summary.entries == len(images)
    assert summary.kept + sum(summary.rejected.values()) == summary.entries
    samples = read_shards(tmp_path / "out")
    kept = {json.loads(parts["json"])["id"] for parts in samples.values()}
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").open()]
    assert kept.isdisjoint(line["id"] for line in lines)
    assert kept | {line["id"] for line in lines} == set(images)
    for name, odd in FILES.items():
        assert (f"odd/{name}.jpg" in kept) == isinstance(odd.fate, str), name


def test_structure_check_finds_ends_but_not_noise():
    options = Options(verify="structure")
    assert store_image(FILES["scan_of_noise"].data, options).conversions == ()
    for name, odd in FILES.items():
        if name.startswith("cut_at_"):
            with pytest.raises(Rejected):
                store_image(odd.data, options)


def test_no_check_still_needs_a_header():
    options = Options(verify="none")
    cut = FILES["baseline_420"].data[:-300]
    assert store_image(cut, options).data == cut
    with pytest.raises(Rejected):
        store_image(FILES["html"].data, options)


def test_reencode_uses_pillow_defaults():
    odd = FILES["baseline_444"]
    stored = store_image(odd.data, Options(reencode=True))
    assert stored.conversions == ("reencoded",)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(odd.data)).convert("RGB").save(buffer, "JPEG")
    assert stored.data == buffer.getvalue()


def test_pixel_bound_is_an_option():
    with pytest.raises(Rejected, match="too_many_pixels"):
        store_image(FILES["baseline_420"].data, Options(max_image_pixels=10_000))
    with pytest.raises(Rejected, match="too_many_pixels"):
        store_image(FILES["png_rgb"].data, Options(max_image_pixels=7_000))
