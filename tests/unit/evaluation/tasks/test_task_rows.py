"""Benchmarks are read from Hugging Face datasets in every form that people have them on disk."""

from __future__ import annotations

import csv
import json

import datasets
import pytest
from task_layouts import LETTER, jpeg, one, put, read, rows_dataset

from dct_tokenizer.decode import decode_rgb
from dct_vl.evaluation.tasks.files import TaskDataError
from dct_vl.evaluation.tasks.registry import find_task
from dct_vl.evaluation.tasks.task import TaskRequests

AI2D_ROWS = [
    {"question": "Which is A?", "options": ["leaf", "root"], "answer": "1", "image": 10},
    {"question": "And B?", "options": ["stem", "seed", "bud"], "answer": "0", "image": 200},
]


def expect_ai2d(items) -> None:
    assert [item.references for item in items] == [("B",), ("A",)]
    assert items[0].question == "Which is A?\nA. leaf\nB. root" + LETTER
    assert items[1].options == ("stem", "seed", "bud")
    assert [item.image_bytes() for item in items] == [(jpeg(10),), (jpeg(200),)]


def test_rows_saved_to_disk(tmp_path):
    rows_dataset(AI2D_ROWS).save_to_disk(tmp_path / "plain")
    expect_ai2d(read("ai2d", tmp_path / "plain"))
    assert all(i.images == () for i in read("ai2d", tmp_path / "plain", images=False))
    both = datasets.DatasetDict(train=rows_dataset(AI2D_ROWS[:1]), test=rows_dataset(AI2D_ROWS))
    both.save_to_disk(tmp_path / "splits")
    expect_ai2d(read("ai2d", tmp_path / "splits"))
    assert len(read("ai2d", tmp_path / "splits", split="train")) == 1
    with pytest.raises(TaskDataError, match="splits train, test; expected val"):
        read("ai2d", tmp_path / "splits", split="val")


def test_rows_in_a_hub_repositorys_parquet_files(tmp_path):
    for part, rows in enumerate((AI2D_ROWS[:1], AI2D_ROWS[1:])):
        file = tmp_path / "data" / f"test-0000{part}-of-00002.parquet"
        file.parent.mkdir(exist_ok=True)
        rows_dataset(rows).to_parquet(file)
    rows_dataset(AI2D_ROWS[:1]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    expect_ai2d(read("ai2d", tmp_path))
    assert all(i.images == () for i in read("ai2d", tmp_path, images=False))
    assert len(read("ai2d", tmp_path / "data" / "test-00001-of-00002.parquet")) == 1


@pytest.mark.parametrize(
    "name", ["ai2d", "AI2D", "lmms-lab___ai2d", "datasets--lmms-lab--ai2d/snapshots/3f"]
)
def test_a_folder_with_a_folder_for_each_benchmark(tmp_path, name):
    """Cambrian737k's `lmmseval`, and the caches of the hub and of the datasets library."""
    for folder, rows in ((name, AI2D_ROWS), ("chartqa", AI2D_ROWS[:1])):
        file = tmp_path / folder / "data" / "test-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        rows_dataset(rows).to_parquet(file)
    expect_ai2d(read("ai2d", tmp_path))


def test_rows_in_the_datasets_librarys_cache(tmp_path):
    rows_dataset(AI2D_ROWS).save_to_disk(tmp_path / "saved")
    content = next((tmp_path / "saved").glob("*.arrow")).read_bytes()
    put(tmp_path / "lmms-lab___ai2d" / "default" / "0.0.0" / "1f" / "ai2d-test.arrow", content)
    for file in (tmp_path / "saved").iterdir():
        file.unlink()
    (tmp_path / "saved").rmdir()
    expect_ai2d(read("ai2d", tmp_path))


def test_a_broken_parquet_file_is_named(tmp_path):
    put(tmp_path / "test-00000-of-00001.parquet", b"PAR1 and no more")
    with pytest.raises(TaskDataError, match=r"test-00000-of-00001\.parquet cannot be read"):
        read("ai2d", tmp_path)


MMVP_ROWS = [
    {
        "Index": index,
        "Question": "Is it open?",
        "Options": "(a) Open (b) Closed",
        "Correct Answer": answer,
    }
    for index, answer in ((1, "(a)"), (2, "(b)"), (99, "(a)"), (100, "(b)"))
]


def test_mmvp_as_its_authors_publish_it_and_as_rows(tmp_path):
    for row in MMVP_ROWS:
        put(tmp_path / "own" / "MMVP Images" / f"{row['Index']}.jpg", jpeg())
    with open(tmp_path / "own" / "Questions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(MMVP_ROWS[0]))
        writer.writeheader()
        writer.writerows(MMVP_ROWS)
    rows_dataset([{**row, "image": 100} for row in MMVP_ROWS]).save_to_disk(tmp_path / "rows")
    own, rows = read("mmvp", tmp_path / "own"), read("mmvp", tmp_path / "rows")
    for items in (own, rows):
        assert [(i.key, i.group) for i in items[:2]] == [("1", "1"), ("2", "1")]
        # 99 and 100 are published swapped
        assert [i.references for i in items] == [("A",), ("B",), ("B",), ("A",)]
        assert items[0].question == "Is it open?\nA. Open\nB. Closed" + LETTER
    assert [i.image_bytes() for i in own] == [i.image_bytes() for i in rows]


def test_mmstar_has_its_options_in_the_question(tmp_path):
    question = "Which option?\nOptions: A: two, or three, B: A dog, C: c, D: none"
    row = {"index": 7, "question": question, "answer": "B", "category": "math", "image": 30}
    rows_dataset([row]).to_parquet(tmp_path / "mmstar.parquet")
    item = one(read("mmstar", tmp_path))
    assert (item.key, item.references, item.group) == ("7", ("B",), "math")
    assert item.options == ("two, or three", "A dog", "c", "none")
    assert item.question == question + LETTER


def test_pope_as_its_authors_publish_it_and_as_rows(tmp_path):
    text = "Is there a dog in the image?"
    put(tmp_path / "own" / "val2014" / "x.jpg", jpeg(30))
    for group in ("random", "popular"):
        lines = [
            json.dumps({"question_id": n, "image": "x.jpg", "text": text, "label": label})
            for n, label in ((1, "yes"), (2, "no"))
        ]
        put(tmp_path / "own" / f"coco_pope_{group}.json", "\n".join(lines).encode())
    rows = [
        {"question_id": str(n), "question": text, "answer": label, "category": group, "image": 30}
        for group in ("popular", "random")
        for n, label in ((1, "yes"), (2, "no"))
    ]
    rows_dataset(rows).save_to_disk(tmp_path / "rows")
    own, rows = read("pope", tmp_path / "own"), read("pope", tmp_path / "rows")
    assert [i.key for i in own] == ["popular-1", "popular-2", "random-1", "random-2"]
    for one_item, other in zip(own, rows, strict=True):
        assert one_item.key == other.key
        assert one_item.turns == other.turns
        assert one_item.references == other.references
        assert one_item.group == other.group
        assert one_item.image_bytes() == other.image_bytes()


@pytest.mark.parametrize(
    ("task", "row", "references"),
    [
        ("chartqa", {"type": "human_test", "question": "?", "answer": "14"}, ("14",)),
        ("docvqa", {"questionId": "1", "question": "?", "answers": ["a", "b"]}, ("a", "b")),
        ("textvqa", {"question_id": 5, "question": "?", "answers": ["a"] * 10}, ("a",) * 10),
        (
            "vqav2",
            {"question_id": 5, "question": "?", "answers": [{"answer": "x", "answer_id": 1}]},
            ("x",),
        ),
        ("coco_captions", {"question_id": "a.jpg", "answer": ["x", "y"]}, ("x", "y")),
        ("nocaps", {"image_id": 3, "annotations_captions": ["x"]}, ("x",)),
        ("flickr30k", {"img_id": 3, "caption": ["x", "y"]}, ("x", "y")),
    ],
)
def test_lmms_labs_rows_of_the_others(tmp_path, task, row, references):
    rows_dataset([{**row, "image": 9}]).save_to_disk(tmp_path)
    item = one(read(task, tmp_path))
    assert item.references == references
    assert item.image_bytes() == (jpeg(9),)


def test_the_hubs_docvqa_lies_beside_another_benchmark(tmp_path):
    for folder, number in (("DocVQA", 1), ("InfographicVQA", 2)):
        row = {"questionId": number, "question": "?", "answers": ["a"], "image": 9}
        file = tmp_path / "DocVQA" / folder / "validation-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        rows_dataset([row]).to_parquet(file)
    for place in (tmp_path, tmp_path / "DocVQA"):
        assert one(read("docvqa", place)).key == "1"


def test_of_all_flickr30k_karpathys_test_split_counts(tmp_path):
    rows = [
        {"img_id": n, "caption": ["x"], "split": split, "image": 9}
        for n, split in enumerate(["train", "test", "val"])
    ]
    rows_dataset(rows).save_to_disk(tmp_path)
    assert one(read("flickr30k", tmp_path)).key == "1"


def test_flickr30k_is_read_by_its_test_split(tmp_path):
    for number, split in enumerate(["val", "test"]):
        row = {"img_id": number, "caption": ["x"], "image": 9}
        rows_dataset([row]).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    assert one(read("flickr30k", tmp_path)).key == "1"


@pytest.mark.parametrize(
    ("task", "name", "own"),
    [
        (
            "textvqa",
            "TextVQA_0.5.1_val.json",
            {"data": [{"question_id": 1, "question": "what IS it?", "image_id": "a"}]},
        ),
        (
            "docvqa",
            "val_v1.0.json",
            {"data": [{"questionId": 1, "question": "what IS it?", "image": "a.jpg"}]},
        ),
        (
            "chartqa",
            "test_human.json",
            [{"query": "what IS it?", "imgname": "a.jpg", "label": "x"}],
        ),
    ],
)
def test_rows_are_asked_as_the_benchmarks_own_files_are(tmp_path, task, name, own):
    put(tmp_path / "own" / "images" / "a.jpg", jpeg())
    put(tmp_path / "own" / name, own)
    put(tmp_path / "own" / "a.jpg", jpeg())
    rows_dataset([{"question": "what IS it?", "answer": "x", "image": 9}]).save_to_disk(
        tmp_path / "rows"
    )
    asked, row = one(read(task, tmp_path / "own")), one(read(task, tmp_path / "rows"))
    assert asked.turns == row.turns
    assert asked.max_new_tokens == row.max_new_tokens


def test_an_item_holds_what_is_asked(tmp_path):
    rows_dataset(AI2D_ROWS[:1]).save_to_disk(tmp_path)
    item = one(read("ai2d", tmp_path))
    asked = one(list(TaskRequests(find_task("ai2d"), tmp_path)))
    assert (asked.key, asked.turns, asked.read()) == (item.key, item.turns, ((jpeg(10),), ()))
    assert decode_rgb(asked.images[0]).shape == (1, 28, 32, 3)
