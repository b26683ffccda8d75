"""report.html and summary.json of a quickstart, recomputed by hand on small data."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer.main
from PIL import Image
from quickstart_results import answers, make_result, page_of, text_of, write_run

from data_prep.cli import app as data_prep_app
from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_vl.evaluation.quickstart import QuickstartResult, SamplePicture, write_quickstart_report
from dct_vl.evaluation.quickstart.report import NEXT_COMMANDS
from dct_vl.runs.run_files import VALIDATION_NAME, append_json_line
from dct_vl.verbs.evaluation import app as evaluation_app

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> $x_1$ {{ 7 * 7 }}'


@pytest.fixture
def result(tmp_path: Path) -> QuickstartResult:
    return make_result(tmp_path)


def test_summary_holds_the_agreed_figures(tmp_path: Path, result: QuickstartResult) -> None:
    append_json_line(result.main.run_dir / VALIDATION_NAME, {"step": 5, "loss": 2.5})
    append_json_line(result.main.run_dir / VALIDATION_NAME, {"step": 10, "loss": 1.5})
    write_quickstart_report(tmp_path / "out", result)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary)[:10] == [
        "tokenizer",
        "train_loss_first",
        "train_loss_last",
        "val_accuracy",
        "val_accuracy_blank_images",
        "val_accuracy_control",
        "num_visual_tokens_per_image",
        "samples_per_second",
        "resumed_from_step",
        "resume_max_abs_loss_diff",
    ]
    sources = summary.pop("accuracy_by_source")
    assert summary == {
        "tokenizer": "dct28_420",
        "train_loss_first": 6.0,  # (8 + 7 + 6 + 5 + 4) / 5
        "train_loss_last": pytest.approx(2.2),  # (3 + 3 + 2 + 2 + 1) / 5
        # the text question does not count
        "val_accuracy": pytest.approx(2 / 3),
        "val_accuracy_blank_images": pytest.approx(1 / 3),
        "val_accuracy_control": pytest.approx(1 / 3),
        "num_visual_tokens_per_image": 11.0,  # (9 + 24) tokens, 3 pictures
        "samples_per_second": 40.0,
        "resumed_from_step": 20,
        "resume_max_abs_loss_diff": 0.0,
        "control_tokenizer": "pixel_downscale",
        "train_loss_last_control": 7.0,
        "val_loss": 1.5,
        "val_loss_control": None,
        "num_visual_tokens_per_image_control": 11.0,
        "samples_per_second_control": 40.0,
        "num_held_out_answers": 3,
        "resume_num_steps_compared": 7,
        "num_rejected_samples": 15,
        "num_prepared_samples": 985,
        "seconds_total": 61.0,
        "export_max_abs_logit_diff": 0.00025,
        "eval_exact_match": 1.0,  # the text question does not count
        "num_exported_answers": 1,
        "num_exported_answers_differing": 0,
    }
    assert sources == {
        "pairs": {
            "num_answers": 1,
            "accuracy": 0.0,
            "accuracy_blank_images": 1.0,
            "accuracy_control": 0.0,
        },
        "shapes": {
            "num_answers": 2,
            "accuracy": 1.0,
            "accuracy_blank_images": 0.0,
            "accuracy_control": 0.5,
        },
        "text": {
            "num_answers": 1,
            "accuracy": 1.0,
            "accuracy_blank_images": 1.0,
            "accuracy_control": 0.0,
        },
    }


def test_the_page_shows_the_figures(tmp_path: Path, result: QuickstartResult) -> None:
    write_quickstart_report(tmp_path / "out", result)
    _, tree = page_of(tmp_path / "out")
    text = text_of(tree)
    for expected in (
        "dct28_420 against pixel_downscale",
        "1 min 1 s in all",
        "66.7 % right answers of 3 questions about held-out pictures",
        "33.3 % with blank pictures",
        "33.3 % control",
        "11.0 visual tokens a picture",
        "40.0 samples a second",
        "6.00 → 2.20 training loss",
        "0 loss difference after resuming The largest one over 7 steps after the checkpoint of "
        "step 20",
        "dct28_420 alone has 1 questions right that pixel_downscale has wrong; the other way "
        "round it is 0.",
        "1 answers, no pictures: not counted above",
        "the loss is equal to the last digit",
        "985 samples were stored in shards. 15 were left out",
        "truncated image 12 missing image 3",
        "100.0 % right answers after the export of 1 questions",
        "Of 5 prompts no logit is further than 2.50e-04 from the trainer's. 1 of its 1 answers "
        "about pictures are right (100.0 %); all are those of the run, word for word.",
        "compare/compare.html puts them beside each other",
    ):
        assert expected in text
    chart = next(e for e in tree.iter() if str(e.tag).endswith("svg"))
    assert "dct28_420" in text_of(chart)
    assert "pixel_downscale" in text_of(chart)


def test_bars_and_whiskers_have_the_right_length(tmp_path: Path, result: QuickstartResult) -> None:
    write_quickstart_report(tmp_path / "out", result)
    _, tree = page_of(tmp_path / "out")
    bars = [e for e in tree.iter() if e.attrib.get("class") == "bar"]
    first = {e.attrib.get("class", "").split()[0]: e for e in bars[0].iter()}
    assert first["bar-fill"].attrib["style"] == "width: 66.67%"
    # Wilson for 2 of 3: (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²) with z = 1.959964
    assert first["bar-whisker"].attrib["style"] == "left: 20.77%; width: 73.08%"


def test_the_gallery_shows_each_view_with_its_answers(
    tmp_path: Path, result: QuickstartResult
) -> None:
    write_quickstart_report(tmp_path / "out", result)
    _, tree = page_of(tmp_path / "out")
    (article,) = tree.iter("article")
    picture = result.pictures[0]
    shown = []
    for image in article.iter("img"):
        data = base64.b64decode(image.attrib["src"].removeprefix("data:image/png;base64,"))
        shown.append(np.asarray(Image.open(io.BytesIO(data))))
    for got, want in zip(
        shown, (picture.original, picture.seen, picture.seen_by_control), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    text = text_of(article)
    assert "original80 × 60" in text
    assert "dct28_42084 × 56" in text
    assert "pixel_downscale56 × 28" in text
    rows = [[text_of(cell).strip() for cell in row.iter("td")] for row in article.iter("tr")][1:]
    assert rows == [
        ["Which shape?", "circle", "✓right: circle", "✓right: circle"],
        ["Which color?", "circle", "✓right: circle", "✗wrong: square"],
    ]


def test_what_real_tokenizers_see_can_be_shown(tmp_path: Path, result: QuickstartResult) -> None:
    original = np.zeros((100, 120, 3), dtype=np.uint8)
    original[20:60, 30:90] = (200, 30, 30)

    def seen_by(tokenizer: VisualTokenizer) -> np.ndarray:
        plan = tokenizer.plan(*original.shape[:2])
        return tokenizer.decode(tokenizer.encode(tokenizer.cells(original[None], plan)), plan)[0]

    seen, seen_by_control = (
        seen_by(build_tokenizer(name, min_pixels=784, max_pixels=43904))
        for name in ("dct28_420", "pixel_downscale")
    )
    pictures = [
        SamplePicture(key="p1", original=array, seen=seen, seen_by_control=seen_by_control)
        for array in (original, np.zeros((2000, 500, 3), dtype=np.uint8))
    ]
    write_quickstart_report(tmp_path, dataclasses.replace(result, pictures=tuple(pictures)))
    _, tree = page_of(tmp_path)
    (article,) = tree.iter("article")
    assert len(list(article.iter("img"))) == 6  # the pictures of one sample stand together
    assert "dct28_420112 × 112" in text_of(article)
    assert "pixel_downscale56 × 56" in text_of(article)
    assert "original500 × 2000" in text_of(article)
    reduced = list(article.iter("img"))[3].attrib["src"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(reduced))).size == (128, 512)


def test_hostile_text_stays_text(tmp_path: Path, result: QuickstartResult) -> None:
    changes = {"question": "<image>" + HOSTILE, "truth": HOSTILE, "answer": HOSTILE}
    main = dataclasses.replace(
        result.main,
        tokenizer=HOSTILE,
        answers=answers(tmp_path / "hostile.jsonl", "rrwr", source=HOSTILE, **changes),
    )
    for other in (result.control.answers, result.blank_answers):
        other.write_text(
            "".join(
                json.dumps(
                    json.loads(line) | {"source": HOSTILE} if number == 0 else json.loads(line)
                )
                + "\n"
                for number, line in enumerate(other.read_text().splitlines())
            )
        )
    data = dataclasses.replace(result, main=main, rejected={HOSTILE: 1})
    write_quickstart_report(tmp_path, data)
    page, tree = page_of(tmp_path)
    assert not list(tree.iter("script"))
    assert not any(name.startswith("on") for e in tree.iter() for name in map(str, e.attrib))
    assert not any(e.attrib["src"] == "x" for e in tree.iter("img"))
    (article,) = tree.iter("article")
    cells = [text_of(cell) for cell in article.iter("td")]
    assert cells[:2] == [HOSTILE, HOSTILE]
    assert HOSTILE in cells[2]
    chart = next(e for e in tree.iter() if str(e.tag).endswith("svg"))
    assert HOSTILE in text_of(chart)
    assert "49" not in re.findall(r"\$x_1\$ (\S+)", page)


def test_the_page_needs_no_other_file(tmp_path: Path, result: QuickstartResult) -> None:
    write_quickstart_report(tmp_path, result)
    page, tree = page_of(tmp_path)
    for element in tree.iter():
        for name, value in element.attrib.items():
            if str(name).split("}")[-1] in ("src", "href", "srcset", "poster", "data", "action"):
                assert value.startswith(("data:", "#")), (element.tag, name, value)
    assert "://" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_little_data_is_enough(tmp_path: Path, result: QuickstartResult) -> None:
    main = dataclasses.replace(result.main, run_dir=write_run(tmp_path / "one", [3.0], [5.0]))
    resume = dataclasses.replace(result.resume, max_abs_loss_diff=0.25)
    data = QuickstartResult(
        main=main,
        control=result.control,
        blank_answers=result.blank_answers,
        resume=resume,
        pictures=(),
    )
    write_quickstart_report(tmp_path, data)
    _, tree = page_of(tmp_path)
    text = text_of(tree)
    assert "differ by up to 0.250: the resumed run is not an exact continuation" in text
    assert "None was left out." in text
    assert "What the models see" not in text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train_loss_first"] == summary["train_loss_last"] == 3.0
    assert summary["samples_per_second"] == 5.0
    assert summary["seconds_total"] is None
    assert summary["export_max_abs_logit_diff"] is None
    assert summary["eval_exact_match"] is None
    assert "Without this project" not in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path, result: QuickstartResult) -> None:
    blank = result.blank_answers
    blank.write_text("\n".join(blank.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match=r"1 questions are answered only by .* turn 1 of t1"):
        write_quickstart_report(tmp_path / "out", result)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_was_not_asked_about_is_refused(
    tmp_path: Path, result: QuickstartResult
) -> None:
    stranger = dataclasses.replace(result.pictures[0], key="nobody")
    with pytest.raises(ValueError, match="no answer about nobody"):
        write_quickstart_report(tmp_path, dataclasses.replace(result, pictures=(stranger,)))


def test_a_run_without_a_step_is_refused(tmp_path: Path, result: QuickstartResult) -> None:
    (tmp_path / "empty").mkdir()
    main = dataclasses.replace(result.main, run_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty: no step was logged"):
        write_quickstart_report(tmp_path, dataclasses.replace(result, main=main))


def test_a_picture_with_a_frame_axis_is_refused() -> None:
    good = np.zeros((4, 4, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"seen of k is uint8 \(1, 4, 4, 3\)"):
        SamplePicture(key="k", original=good, seen=good[None], seen_by_control=good)


def test_the_next_commands_exist() -> None:
    apps = {"data_prep": data_prep_app, "evaluation": evaluation_app}
    for _, command in NEXT_COMMANDS:
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file()
            continue
        assert words[:2] == ["python", "-m"]
        assert (ROOT / words[2] / "__main__.py").is_file()
        if words[2] in apps:
            verb = typer.main.get_command(apps[words[2]]).commands[words[3]]  # type: ignore[attr-defined]
            known = {option for parameter in verb.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known
