"""Each benchmark is read from a tiny copy of its own layout."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from evaluation.tasks.files import TaskDataError
from evaluation.tasks.item import as_question
from evaluation.tasks.registry import TASKS, find_task
from evaluation.tasks.task import ReadOptions, items_of

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def jpeg(level: int = 100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 28), (level, 60, 90)).save(file, "JPEG")
    return file.getvalue()


def put(path: Path, content: object) -> Path:
    """Write bytes as they are, everything else as JSON; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def read(name: str, path: Path, **options):
    return items_of(find_task(name), path, ReadOptions(**options))


def rows_dataset(rows: list[dict]) -> datasets.Dataset:
    """Rows whose `image` is a level of grey, with the image feature that the hub's have."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    columns["image"] = [{"bytes": jpeg(level), "path": None} for level in columns["image"]]
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def one(items):
    assert len(items) == 1
    return items[0]


def test_coco_captions(tmp_path):
    put(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg", jpeg())
    captions = {
        "info": {},
        "licenses": [],
        "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "height": 28}],
        "annotations": [
            {"image_id": 42, "id": 1, "caption": "A dog runs."},
            {"image_id": 42, "id": 2, "caption": "The dog."},
        ],
    }
    file = put(tmp_path / "annotations" / "captions_val2014.json", captions)
    item = one(read("coco_captions", tmp_path))
    assert (item.key, item.references) == ("42", ("A dog runs.", "The dog."))
    assert item.question == "Provide a one-sentence caption for the provided image."
    assert item.turns[0].text.startswith("<image>\n")
    assert item.image_bytes() == (jpeg(),)
    assert one(read("coco_captions", file)).image_bytes() == (jpeg(),), "the file itself"
    put(tmp_path / "annotations" / "captions_train2014.json", captions)
    with pytest.raises(
        TaskDataError, match=r"captions_train2014\.json.*name one of them, or a spl"
    ):
        read("coco_captions", tmp_path)
    assert read("coco_captions", tmp_path, split="val2014")
    (tmp_path / "val2014" / "COCO_val2014_000000000042.jpg").unlink()
    assert one(read("coco_captions", file, images=False)).images == ()
    with pytest.raises(TaskDataError, match=r"COCO_val2014_000000000042\.jpg is in none of"):
        read("coco_captions", file)


def test_nocaps_has_domains(tmp_path):
    put(tmp_path / "images" / "0013ea2087020901.jpg", jpeg())
    image = {"id": 0, "file_name": "0013ea2087020901.jpg", "domain": "near-domain"}
    put(
        tmp_path / "nocaps_val_4500_captions.json",
        {"images": [image], "annotations": [{"image_id": 0, "id": 0, "caption": "A baby."}]},
    )
    item = one(read("nocaps", tmp_path))
    assert (item.key, item.group, item.references) == ("0", "near-domain", ("A baby.",))


def test_flickr30k_of_karpathy(tmp_path):
    put(tmp_path / "flickr30k-images" / "1007129816.jpg", jpeg())
    image = {
        "sentids": [0],
        "imgid": 67,
        "sentences": [{"tokens": ["a", "man"], "raw": "A man.", "imgid": 67, "sentid": 0}],
        "split": "test",
        "filename": "1007129816.jpg",
    }
    other = {**image, "imgid": 68, "split": "train"}
    put(tmp_path / "dataset_flickr30k.json", {"images": [image, other], "dataset": "flickr30k"})
    item = one(read("flickr30k", tmp_path))
    assert (item.key, item.references) == ("67", ("A man.",))
    assert len(item.image_bytes()) == 1
    with pytest.raises(TaskDataError, match="splits test, train, and no val"):
        read("flickr30k", tmp_path, split="val")


def test_karpathys_test_split_of_coco(tmp_path):
    put(tmp_path / "val2014" / "COCO_val2014_000000391895.jpg", jpeg())
    image = {
        "filepath": "val2014",
        "sentences": [{"raw": "A man on a bike."}],
        "filename": "COCO_val2014_000000391895.jpg",
        "imgid": 0,
        "split": "test",
        "cocoid": 391895,
    }
    put(tmp_path / "dataset_coco.json", {"images": [image], "dataset": "coco"})
    item = one(read("coco_captions", tmp_path))
    assert (item.key, item.references) == ("391895", ("A man on a bike.",))
    assert item.image_bytes() == (jpeg(),)


def test_vqav2(tmp_path):
    put(tmp_path / "val2014" / "COCO_val2014_000000262148.jpg", jpeg())
    question = {"image_id": 262148, "question": "Where is he?", "question_id": 262148000}
    put(
        tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json",
        {"data_subtype": "val2014", "questions": [question]},
    )
    answers = [{"answer": f"down {n % 2}", "answer_id": n + 1} for n in range(10)]
    note = {"question_id": 262148000, "image_id": 262148, "answers": answers}
    put(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [note]})
    item = one(read("vqav2", tmp_path))
    assert (item.key, item.question) == ("262148000", "Where is he?" + SHORT)
    assert item.references == ("down 0", "down 1") * 5
    assert item.image_bytes() == (jpeg(),)


def test_textvqa(tmp_path):
    put(tmp_path / "train_images" / "003a8ae2ef43b901.jpg", jpeg())
    entry = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "set_name": "val",
        "answers": ["dakota"] * 10,
    }
    put(tmp_path / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [entry]})
    put(tmp_path / "TextVQA_0.5.1_train.json", {"dataset_type": "train", "data": []})
    item = one(read("textvqa", tmp_path))
    assert (item.key, item.references) == ("34602", ("dakota",) * 10)
    assert item.question == "What is the brand of this camera?" + SHORT


def test_docvqa(tmp_path):
    put(tmp_path / "documents" / "xnbl0037_1.png", jpeg())
    entry = {
        "questionId": 49153,
        "question": "What is the number?",
        "image": "documents/xnbl0037_1.png",
        "docId": 14465,
        "answers": ["0.28", ".28"],
    }
    data = {"dataset_name": "SP-DocVQA", "dataset_split": "val", "data": [entry]}
    put(tmp_path / "val_v1.0_withQT.json", data)
    item = one(read("docvqa", tmp_path))
    assert (item.key, item.references) == ("49153", ("0.28", ".28"))
    assert item.image_bytes() == (jpeg(),)


def test_chartqa_has_two_files(tmp_path):
    for kind, label in (("human", "14"), ("augmented", "0.57")):
        put(tmp_path / "test" / "png" / f"{kind}.png", jpeg())
        entry = {"imgname": f"{kind}.png", "query": "How many?", "label": label}
        put(tmp_path / "test" / f"test_{kind}.json", [entry])
    items = read("chartqa", tmp_path)
    assert [(i.key, i.group, i.references) for i in items] == [
        ("human-0", "human", ("14",)),
        ("augmented-0", "augmented", ("0.57",)),
    ]
    assert all(item.image_bytes() for item in items)
    only = one(read("chartqa", tmp_path / "test" / "test_human.json"))
    assert (only.key, only.group) == ("human-0", "human")


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


def test_prices_in_chat_lines(tmp_path):
    put(tmp_path / "p.jpg", jpeg())
    question = [{"type": "image", "image": "p.jpg"}, {"type": "text", "text": "A lamp"}]
    messages = [
        {"role": "system", "content": "You are precise."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "199.99"},
    ]
    lines = [{"sample_id": 1, "messages": messages}, {"sample_id": 2, "messages": messages[:2]}]
    file = put(tmp_path / "val.jsonl", "\n".join(map(json.dumps, lines)).encode())
    known, unknown = read("price", file)
    assert (known.key, known.references, unknown.references) == ("1", ("199.99",), ())
    assert [turn.role for turn in known.turns] == ["system", "user"]
    assert known.turns[1].text == "<image>\nA lamp"
    assert known.image_bytes() == (jpeg(),)


def test_questions_of_ones_own(tmp_path):
    put(tmp_path / "a.jpg", jpeg(1))
    put(tmp_path / "b.jpg", jpeg(2))
    lines = [
        {"key": "x", "question": "Same?", "answers": ["no", "none"], "images": ["a.jpg", "b.jpg"]},
        {"key": "y", "question": "A <image> and?", "answer": "b", "image": "b.jpg"},
        {"key": "z", "question": "1 + 1?", "answer": 2},
    ]
    file = put(tmp_path / "q.jsonl", "\n".join(map(json.dumps, lines)).encode())
    two, placed, text = read("qa", tmp_path)
    assert two.turns[0].text == "<image>\n<image>\nSame?"
    assert placed.turns[0].text == "A <image> and?"
    assert (text.images, text.references) == ((), ("2",))
    bad = {"key": "w", "question": "<image>", "answer": "b"}
    put(tmp_path / "q.jsonl", json.dumps(bad).encode())
    with pytest.raises(TaskDataError, match=r"line 1: 1 <image> marks for 0 images"):
        read("qa", file)


def test_an_item_becomes_a_question_of_the_answering_code(tmp_path):
    rows_dataset(AI2D_ROWS[:1]).save_to_disk(tmp_path)
    item = one(read("ai2d", tmp_path))
    question = as_question(item)
    assert (question.key, question.turns, question.images) == (item.key, item.turns, (jpeg(10),))
    assert question.frames[0].shape == (1, 28, 32, 3)


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_a_folder_of_something_else_is_refused(task, tmp_path):
    put(tmp_path / "notes.txt", b"nothing of it")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read(task, tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read(task, tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, 'expected an object with a list "annotations"'),
        ([], "holds a list; expected an object"),
        (b"{", "is no JSON"),
        ({"annotations": [{"id": 1}], "images": []}, "an entry has id; expected image_id"),
        ({"annotations": [], "images": []}, "has no item of coco_captions"),
    ],
)
def test_broken_files_say_what_is_wrong(tmp_path, content, message):
    put(tmp_path / "captions_val2014.json", content)
    with pytest.raises(ValueError, match=message):
        read("coco_captions", tmp_path)


def test_keys_must_not_repeat(tmp_path):
    line = json.dumps({"key": "x", "question": "?", "answer": "a"})
    put(tmp_path / "q.jsonl", f"{line}\n{line}\n".encode())
    with pytest.raises(ValueError, match="two items of qa with the key x"):
        read("qa", tmp_path)


def test_an_unknown_task_lists_the_known():
    with pytest.raises(ValueError, match="no task 'coco'; there are coco_captions, nocaps"):
        find_task("coco")
