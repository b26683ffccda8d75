"""Images on the page that compares runs, where some of them are damaged."""

from __future__ import annotations

import io
import re

import numpy as np
from compared_runs import write_lines, write_run
from PIL import Image

from dct_vl.evaluation.compare import read_runs, write_comparison


def test_a_damaged_picture_is_left_out_and_the_scores_stand(tmp_path):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    (tmp_path / "whole.png").write_bytes(file.getvalue())
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:200])
    keys = ("whole", "cut")
    asked = [
        {"key": key, "question": "What?", "answers": ["x"], "image": f"{key}.png"} for key in keys
    ]
    data = write_lines(tmp_path / "qa.jsonl", asked)
    folders, files = [], {}
    for name, right in (("ours", 1.0), ("theirs", 0.0)):
        folders.append(write_run(tmp_path / name, data="/nowhere", model="/nothing"))
        lines = [
            {"doc_id": key, "key": key, "filtered_resps": ["x"], "exact_match": right}
            for key in keys
        ]
        files[name] = write_lines(tmp_path / f"{name}_samples_qa.jsonl", lines)
    page = write_comparison(read_runs(folders, answers=files), tmp_path / "o", data={"qa": data})
    articles = re.findall("<article.*?</article>", page.read_text(), flags=re.DOTALL)
    # the two runs share a tokenizer, and so an image beside the original
    assert sorted(article.count("<img") for article in articles) == [0, 2]
    assert sum("Its images are damaged" in article for article in articles) == 1
