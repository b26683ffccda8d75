"""Each benchmark is read from a tiny copy of its authors' own files."""

from __future__ import annotations

import json

import pytest
from task_layouts import SHORT, jpeg, one, put, read

from dct_vl.evaluation.tasks.files import TaskDataError
from dct_vl.evaluation.tasks.registry import TASKS, find_task


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
        {"key": "n", "question": "?", "answer": None, "image": None, "max_new_tokens": None},
    ]
    file = put(tmp_path / "q.jsonl", "\n".join(map(json.dumps, lines)).encode())
    two, placed, text, null = read("qa", tmp_path)
    assert two.turns[0].text == "<image>\n<image>\nSame?"
    assert placed.turns[0].text == "A <image> and?"
    assert (text.images, text.references) == ((), ("2",))
    assert (null.images, null.references, null.max_new_tokens) == ((), (), 32)
    bad = {"key": "w", "question": "<image>", "answer": "b"}
    put(tmp_path / "q.jsonl", json.dumps(bad).encode())
    with pytest.raises(TaskDataError, match=r"line 1: 1 <image> marks for 0 images"):
        read("qa", file)


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


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("ai2d", "test.arrow", b"\xff\xff\xff\xff\x08", "test.arrow cannot be read"),
        ("chartqa", "test_human.json", [1], "item 1 of chartqa cannot be read"),
        ("mmvp", "Questions.csv", b"a,b\n1,2,3\n", "an entry has a, b, None; expected Index"),
        ("mmvp", "Questions.csv", b"Index,Question\n\xe9,?\n", "item 1 of mmvp cannot be read"),
        ("mmvp", "Questions.csv", b"Index,Question\nx,?\n", "item 1 of mmvp cannot be read"),
        ("price", "p.jsonl", {"id": 1, "messages": [None]}, "line 1: the message None is no obj"),
        (
            "price",
            "p.jsonl",
            {"id": 1, "messages": [{"role": "user", "content": ["x"]}]},
            "line 1: the part 'x' of a content is no object",
        ),
        ("qa", "q.jsonl", {"key": 1, "question": "?", "max_new_tokens": "x"}, "line 1: max_new"),
        ("ai2d", "state.json", b"{", "item 1 of ai2d cannot be read"),
    ],
)
def test_damaged_entries_are_named(tmp_path, task, name, content, message):
    put(tmp_path / name, content)
    put(tmp_path / "x.arrow", b"")
    with pytest.raises(TaskDataError, match=message):
        read(task, tmp_path)


def test_true_answers_are_texts(tmp_path):
    """One text is not taken for a list of letters, nor a number for a text."""
    entry = {"questionId": 1, "question": "?", "image": "a.png"}
    put(tmp_path / "a.png", jpeg())
    put(tmp_path / "val_v1.0.json", {"data": [{**entry, "answers": "yes"}]})
    assert one(read("docvqa", tmp_path)).references == ("yes",)
    put(tmp_path / "val_v1.0.json", {"data": [{**entry, "answers": [5]}]})
    assert one(read("docvqa", tmp_path)).references == ("5",)


def test_keys_must_not_repeat(tmp_path):
    line = json.dumps({"key": "x", "question": "?", "answer": "a"})
    put(tmp_path / "q.jsonl", f"{line}\n{line}\n".encode())
    with pytest.raises(ValueError, match="two items of qa with the key x"):
        read("qa", tmp_path)


def test_an_unknown_task_lists_the_known():
    with pytest.raises(ValueError, match="no task 'coco'; there are coco_captions, nocaps"):
        find_task("coco")
