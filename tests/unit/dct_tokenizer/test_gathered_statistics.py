"""Statistics gathered from shards against numpy's, and what is skipped."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dct_tokenizer import TokenizerConfigError, build_tokenizer
from dct_tokenizer.gather import gather_statistics, images_in


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format=kind)
    return file.getvalue()


DCT14 = build_tokenizer("dct14")

DCT14 = build_tokenizer("dct14")


def write_shards(folder, members: list[tuple[str, bytes]], per_shard: int = 2):
    for start in range(0, len(members), per_shard):
        with tarfile.open(folder / f"shard-{start:03d}.tar", "w") as tar:
            for name, content in members[start : start + per_shard]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_statistics_equal_numpys_over_all_cells(tmp_path, photos):
    crops = [photos[0][:224, :280], photos[1][100:300, :400], photos[0][200:, 300:]]
    members = [(f"a{i}.0.jpg", encoded(crop)) for i, crop in enumerate(crops)]
    members += [("a0.json", b"{}"), ("b.jpg", b"not a picture"), ("c.jpg", encoded(crops[0])[:99])]
    write_shards(tmp_path, members)
    tokenizer = build_tokenizer("dct28_420", max_pixels=60_000)
    gathered = gather_statistics(tokenizer, tokenizer.bands, images_in(tmp_path), 100)
    assert (gathered.num_images, gathered.num_skipped) == (3, 2)

    rows = []
    for crop in crops:
        plan = tokenizer.plan(*crop.shape[:2])
        rows.append(tokenizer.encode(tokenizer.cells(np.ascontiguousarray(crop)[None], plan)))
    still = tokenizer.bands.num_spatial
    columns = torch.cat(rows)[:, :still].double()
    torch.testing.assert_close(gathered.statistics.mean[:still], columns.mean(0))
    assert gathered.statistics.mean[still:].abs().max() == 0
    std = columns.std(0, correction=0)
    torch.testing.assert_close(
        gathered.statistics.std[:still], std.clamp_min(0.01 * std.median()), rtol=1e-4, atol=1e-6
    )
    assert (gathered.statistics.std[still:] < gathered.statistics.std[:still]).all()


def test_reading_stops_at_the_wanted_number(tmp_path, photos):
    members = [(f"{i}.jpg", encoded(photos[i % 2][:100, :100])) for i in range(5)]
    write_shards(tmp_path, members)
    gathered = gather_statistics(DCT14, DCT14.bands, images_in(tmp_path), 3)
    assert gathered.num_images == 3


def test_flat_pictures_do_not_give_deviations_of_zero(tmp_path):
    write_shards(tmp_path, [("a.png", encoded(np.full((112, 112, 3), 9, np.uint8)))])
    gathered = gather_statistics(DCT14, DCT14.bands, images_in(tmp_path), 3)
    assert (gathered.statistics.std > 0).all()


def test_folders_without_shards_or_pictures_are_refused(tmp_path):
    with pytest.raises(TokenizerConfigError, match=r"no \.tar files"):
        next(images_in(tmp_path))
    write_shards(tmp_path, [("a.json", b"{}")])
    with pytest.raises(TokenizerConfigError, match="no usable image"):
        gather_statistics(DCT14, DCT14.bands, images_in(tmp_path), 3)
