"""report.html and summary.json of a quickstart, recomputed by hand on small data."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer.main
from compared_runs import write_lines, write_run
from PIL import Image
from quickstart_results import (
    answer,
    answers,
    exported,
    make_result,
    page_of,
    png,
    runs_of,
    summary_of,
    text_of,
)

from data_prep.cli import app as data_prep_app
from dct_tokenizer import VisualTokenizer, build_tokenizer
from dct_vl.cli import app_for
from dct_vl.evaluation.compare import ComparedRun, read_runs
from dct_vl.evaluation.compare.gallery import Asked, first_of_each_source
from dct_vl.evaluation.compare.pairing import pair
from dct_vl.evaluation.compare.quickstart import Quickstart
from dct_vl.evaluation.compare.quickstart_figures import count, tokens_per_image
from dct_vl.evaluation.compare.quickstart_page import NEXT_COMMANDS, write_quickstart
from dct_vl.evaluation.compare.results import ResultFile, read_results

ROOT = Path(__file__).resolve().parents[3]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> $x_1$ {{ 7 * 7 }}'


@pytest.fixture
def result(tmp_path: Path) -> Quickstart:
    return make_result(tmp_path)


def test_summary_holds_the_agreed_figures(tmp_path: Path, result: Quickstart) -> None:
    validation = [{"step": 5, "loss": 2.5}, {"step": 10, "loss": 1.5}]
    result = replace(result, main=replace(result.main, validation=validation))
    write_quickstart(result, tmp_path / "out")
    summary = summary_of(tmp_path / "out")
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
        "num_visual_tokens_per_image": 11.0,  # (9 + 24) tokens, 3 images
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


def test_the_page_shows_the_figures(tmp_path: Path, result: Quickstart) -> None:
    write_quickstart(result, tmp_path / "out")
    _, tree = page_of(tmp_path / "out")
    text = text_of(tree)
    for expected in (
        "dct28_420 against pixel_downscale",
        "trained on them for 13 steps and asked 3 questions about images that they were not",
        "1 min 1 s in all",
        # of two kinds that the control answers less of, and of which nothing can be guessed
        "Learnt best: “Which color …” 100.0 % of 1 such questions are answered right",
        "the same model has 0.0 % right; the control has 0.0 %.",
        "All 3 questions",
        "0 loss difference after resuming The largest one over 7 steps after the checkpoint of "
        "step 20",
        "dct28_420 alone has 1 questions right that pixel_downscale has wrong; the other way "
        "round it is 0.",
        "text no images: not counted above",
        "the loss is equal to the last digit",
        "985 samples were stored in shards. 15 were left out",
        "truncated image 12 missing image 3",
        "0 of 1 answers changed by the export 100.0 % right in plain transformers",
        "Of 5 prompts no logit is further than 2.50e-04 from the trainer's. 1 of its 1 answers "
        "about images are right (100.0 %); all are those of the run, word for word.",
        "The runs did different numbers of steps: dct28_420 13, pixel_downscale 3.",
    ):
        assert expected in text
    rows = {
        text_of(row[0]).strip(): [text_of(cell).strip() for cell in row[1:]]
        for row in tree.iter("tr")
    }
    assert rows["right answers"] == ["66.7 %", "33.3 %"]
    assert rows["visual tokens an image"] == ["11.0", "11.0"]
    assert rows["training samples a second"] == ["40.0", "40.0"]
    assert rows["training loss"] == ["6.00 → 2.20", "7.00 → 7.00"]
    assert rows["pairs"] == ["1", "0.0 %", "0.0 %", "100.0 %"]
    assert rows["text no images: not counted above"] == ["1", "100.0 %", "0.0 %", "100.0 %"]
    (chart,) = (e for e in tree.iter() if str(e.tag).endswith("svg"))
    assert "dct28_420" in text_of(chart)
    assert "pixel_downscale" in text_of(chart)


def test_there_is_one_count_of_tokens(tmp_path: Path, result: Quickstart) -> None:
    """Of the two samples it would be 16.5, and stood beside that of the three images."""
    write_quickstart(result, tmp_path)
    text = text_of(page_of(tmp_path)[1])
    assert "16.5" not in text
    assert text.count("11.0") == 2


def test_a_sample_counts_once_with_all_its_images(tmp_path: Path) -> None:
    lines = [
        answer("a", 1, True, question="<image>What?", num_visual_tokens=4),
        answer("a", 3, True, question="And?", num_visual_tokens=4),
        answer("b", 1, True, question="<image><image>", num_visual_tokens=26),
        answer("c", 1, True, question="No image?", num_visual_tokens=0),
    ]
    assert tokens_per_image(read_results(write_lines(tmp_path / "a.jsonl", lines))) == 10.0


def test_what_is_learnt_best_leads_unless_hardly_anything_was_asked(
    tmp_path: Path, result: Quickstart
) -> None:
    """Ten questions of a kind with a small lead come before nine with a large one."""

    def asked(name: str, few: int, many: int) -> Path:
        kinds = [("How many?", 9, few), ("What color?", 10, many)]
        return write_lines(
            tmp_path / name,
            [
                answer(f"{kind[:3]}{n}", 1, n < right, question=f"<image>{kind}")
                for kind, number, right in kinds
                for n in range(number)
            ],
        )

    files = {"main": asked("m.jsonl", 9, 2), "control": asked("c.jsonl", 9, 2)}
    main, control = runs_of(result.main.folder, result.control.folder, files)
    blank = read_results(asked("b.jsonl", 0, 1))
    write_quickstart(
        replace(result, main=main, control=control, blank=blank, samples={}, export=None), tmp_path
    )
    text = text_of(page_of(tmp_path)[1])
    assert "Learnt best: “What color …” 20.0 % of 10 such questions" in text
    assert text.index("“What color …” 10 questions") < text.index("“How many …” 9 questions")


def test_bars_and_whiskers_have_the_right_length(tmp_path: Path, result: Quickstart) -> None:
    write_quickstart(result, tmp_path / "out")
    _, tree = page_of(tmp_path / "out")
    bars = [e for e in tree.iter() if e.attrib.get("class") == "bar"]
    # three of what is learnt best, then three of all questions
    first = {e.attrib.get("class", "").split()[0]: e for e in bars[3].iter()}
    assert first["bar-fill"].attrib["style"] == "width: 66.67%"
    # Wilson for 2 of 3: (k + z²/2 ± z √(k(n-k)/n + z²/4)) / (n + z²) with z = 1.959964
    assert first["bar-whisker"].attrib["style"] == "left: 20.77%; width: 73.08%"


def images_of(article) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(e.attrib["src"].partition(",")[2]))))
        for e in article.iter("img")
    ]


def seen_by(name: str, original: np.ndarray) -> np.ndarray:
    tokenizer: VisualTokenizer = build_tokenizer(name, min_pixels=784, max_pixels=43904)
    plan = tokenizer.plan(*original.shape[:2])
    return tokenizer.decode(tokenizer.encode(tokenizer.cells(original[None], plan)), plan)[0]


def test_the_gallery_shows_each_view_with_its_answers(tmp_path: Path, result: Quickstart) -> None:
    write_quickstart(result, tmp_path / "out")
    _, tree = page_of(tmp_path / "out")
    (article,) = tree.iter("article")
    original = np.asarray(Image.open(io.BytesIO(result.samples["s1"].images[0])))
    wanted = original, seen_by("dct28_420", original), seen_by("pixel_downscale", original)
    for got, want in zip(images_of(article), wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    text = text_of(article)
    assert "original170 × 60" in text
    assert "dct28_420168 × 56, 3 tokens" in text
    assert "pixel_downscale84 × 28, 3 tokens" in text
    rows = [[text_of(cell).strip() for cell in row.iter("td")] for row in article.iter("tr")][1:]
    assert rows == [
        ["Which shape?", "circle", "✓right: circle", "✓right: circle"],
        ["Which color?", "circle", "✓right: circle", "✗wrong: square"],
    ]


def test_the_images_of_one_sample_stand_together(tmp_path: Path, result: Quickstart) -> None:
    original = np.zeros((100, 120, 3), dtype=np.uint8)
    original[20:60, 30:90] = (200, 30, 30)
    images = (png(original), png(np.zeros((2000, 500, 3), dtype=np.uint8)))
    samples = {"p1": Asked(images=images, question="", truth="")}
    write_quickstart(replace(result, samples=samples), tmp_path)
    _, tree = page_of(tmp_path)
    (article,) = tree.iter("article")
    shown = images_of(article)
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[1], seen_by("dct28_420", original))
    assert "dct28_420112 × 112" in text_of(article)
    assert "pixel_downscale56 × 56" in text_of(article)
    assert "original500 × 2000" in text_of(article)
    assert shown[3].shape == (512, 128, 3)


def test_the_gallery_takes_as_many_samples_of_each_source(
    tmp_path: Path, result: Quickstart
) -> None:
    lines = [
        answer(f"{source}{n}", 1, True, source=source) for source in "ab" for n in range(5)
    ] + [answer("c0", 1, True, source="c")]
    file = write_lines(tmp_path / "a.jsonl", lines)
    folders = result.main.folder, result.control.folder
    (paired,), _ = pair(read_runs(folders, answers={"main": file, "control": file}))
    assert first_of_each_source(paired, 6) == ["a0", "a1", "b0", "b1", "c0"]
    assert first_of_each_source(paired, 2) == ["a0", "b0"]


def test_hostile_text_stays_text(tmp_path: Path, result: Quickstart) -> None:
    changes = {"question": "<image>" + HOSTILE, "truth": HOSTILE, "answer": HOSTILE}
    files = {
        "main": answers(tmp_path / "hostile.jsonl", "rrwr", source=HOSTILE, **changes),
        "control": answers(tmp_path / "control.jsonl", "rwww", source=HOSTILE),
    }
    main, control = runs_of(result.main.folder, result.control.folder, files)
    write_quickstart(
        replace(
            result,
            main=replace(main, name=HOSTILE),
            control=control,
            blank=read_results(answers(tmp_path / "blank.jsonl", "wwrr", source=HOSTILE)),
            rejected={HOSTILE: 1},
        ),
        tmp_path,
    )
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


def test_the_page_needs_no_other_file(tmp_path: Path, result: Quickstart) -> None:
    write_quickstart(result, tmp_path)
    page, tree = page_of(tmp_path)
    for element in tree.iter():
        for name, value in element.attrib.items():
            if str(name).split("}")[-1] in ("src", "href", "srcset", "poster", "data", "action"):
                assert value.startswith(("data:", "#")), (element.tag, name, value)
    assert "://" not in page
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_little_data_is_enough(tmp_path: Path, result: Quickstart) -> None:
    one = write_run(tmp_path / "one", data="none", model="none", losses=[3.0], rates=[5.0])
    files = {"one": answers(tmp_path / "main.jsonl", "rrwr"), "control": tmp_path / "control.jsonl"}
    main, control = runs_of(one, result.control.folder, files)
    resume = replace(result.resume, max_abs_loss_diff=0.25)
    write_quickstart(
        Quickstart(main=main, control=control, blank=result.blank, resume=resume), tmp_path
    )
    _, tree = page_of(tmp_path)
    text = text_of(tree)
    assert "differ by up to 0.250: the resumed run is not an exact continuation" in text
    assert "None was left out." in text
    assert "What the models see" not in text
    summary = summary_of(tmp_path)
    assert summary["train_loss_first"] == summary["train_loss_last"] == 3.0
    assert summary["samples_per_second"] == 5.0
    assert summary["seconds_total"] is None
    assert summary["export_max_abs_logit_diff"] is None
    assert summary["eval_exact_match"] is None
    assert "Without this project" not in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path, result: Quickstart) -> None:
    items = dict(list(result.blank.items.items())[:-1])
    blank = replace(result.blank, items=items)
    with pytest.raises(ValueError, match=r"1 questions are answered only by .* turn 1 of t1"):
        write_quickstart(replace(result, blank=blank), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_that_the_export_changed_are_counted(tmp_path: Path, result: Quickstart) -> None:
    assert result.export is not None
    changed = read_results(exported(tmp_path / "hf.answers.jsonl", "ww"))
    write_quickstart(replace(result, export=replace(result.export, answers=changed)), tmp_path)
    text = text_of(page_of(tmp_path)[1])
    assert "0 of its 1 answers about images are right (0.0 %); 1 are not those of the run" in text
    summary = summary_of(tmp_path)
    assert (summary["eval_exact_match"], summary["num_exported_answers_differing"]) == (0.0, 1)


def test_an_export_that_was_asked_something_else_is_refused(
    tmp_path: Path, result: Quickstart
) -> None:
    assert result.export is not None
    strange = read_results(write_lines(tmp_path / "x.jsonl", [answer("s9", 1, True)]))
    export = replace(result.export, answers=strange)
    with pytest.raises(ValueError, match=r"turn 1 of s9, which the run was not asked"):
        write_quickstart(replace(result, export=export), tmp_path)


def test_the_next_commands_exist() -> None:
    for _, command in NEXT_COMMANDS:
        words = [word for word in command.split() if not re.match(r"[A-Z_]+=", word)]
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file()
            continue
        if words[0] == "dct-vl":
            app, name = app_for(words[1:]), words[1]
        else:
            assert words[:3] == ["python", "-m", "data_prep"]
            app, name = data_prep_app, words[3]
        verb = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        if not verb.ignore_unknown_options:
            known = {option for parameter in verb.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("part", ["main", "control", "blank", "export"])
def test_answers_of_which_none_is_about_an_image_are_refused(result: Quickstart, part: str) -> None:
    def blind(file: ResultFile) -> ResultFile:
        items = {i: replace(item, num_visual_tokens=0) for i, item in file.items.items()}
        return replace(file, items=items, path=Path("blind.jsonl"))

    assert result.export is not None
    changed: dict[str, object] = {
        "blank": blind(result.blank),
        "export": replace(result.export, answers=blind(result.export.answers)),
    }
    for name in ("main", "control"):
        run: ComparedRun = getattr(result, name)
        changed[name] = replace(run, results={n: blind(f) for n, f in run.results.items()})
    with pytest.raises(ValueError, match=r"blind\.jsonl has no answer about an image"):
        count(replace(result, **{part: changed[part]}))  # type: ignore[arg-type]
