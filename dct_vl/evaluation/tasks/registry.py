"""Every task by its name."""

from __future__ import annotations

from functools import partial

from dct_vl.evaluation.metrics.answers import anls, exact_match, relaxed_match, vqa_accuracy
from dct_vl.evaluation.tasks import captions, chats, choices, questions, scorers
from dct_vl.evaluation.tasks.task import Task

_ROWS = "or its Hugging Face dataset on disk"

TASKS: tuple[Task, ...] = (
    Task(
        name="coco_captions",
        summary="COCO captions",
        layout=f"annotations/captions_val2014.json or dataset_coco.json and val2014/, {_ROWS}",
        read=captions.read_coco,
        score=scorers.captions,
        headline="CIDEr-D",
    ),
    Task(
        name="nocaps",
        summary="NoCaps: captions of new objects",
        layout=f"nocaps_val_4500_captions.json and images/, {_ROWS}",
        read=captions.read_coco,
        score=scorers.captions,
        headline="CIDEr-D",
    ),
    Task(
        name="flickr30k",
        summary="Flickr30k captions, Karpathy's test split",
        layout=f"dataset_flickr30k.json and flickr30k-images/, {_ROWS}",
        read=captions.read_karpathy,
        score=scorers.captions,
        headline="CIDEr-D",
    ),
    Task(
        name="vqav2",
        summary="VQAv2: questions about photographs",
        layout=f"*questions.json, *annotations.json and val2014/, {_ROWS}",
        read=questions.read_vqav2,
        score=scorers.mean_of("accuracy", vqa_accuracy),
        headline="accuracy",
    ),
    Task(
        name="textvqa",
        summary="TextVQA: questions about text in photographs",
        layout=f"TextVQA_0.5.1_val.json and train_images/, {_ROWS}",
        read=questions.read_textvqa,
        score=scorers.mean_of("accuracy", partial(vqa_accuracy, textvqa=True)),
        headline="accuracy",
    ),
    Task(
        name="docvqa",
        summary="DocVQA: questions about documents",
        layout=f"val_v1.0.json and documents/, {_ROWS}",
        read=questions.read_docvqa,
        score=scorers.mean_of("anls", anls),
        headline="anls",
    ),
    Task(
        name="chartqa",
        summary="ChartQA: questions about charts, 5 % tolerance",
        layout=f"test/test_human.json, test/test_augmented.json and test/png/, {_ROWS}",
        read=questions.read_chartqa,
        score=scorers.mean_of("relaxed_accuracy", relaxed_match, by_group=True),
        headline="relaxed_accuracy",
    ),
    Task(
        name="ai2d",
        summary="AI2D: multiple choice about diagrams",
        layout="its Hugging Face dataset on disk",
        read=choices.read_ai2d,
        score=scorers.choices,
        headline="accuracy",
    ),
    Task(
        name="mmvp",
        summary="MMVP: pairs of images that CLIP cannot tell apart",
        layout=f"Questions.csv and MMVP Images/, {_ROWS}",
        read=choices.read_mmvp,
        score=scorers.choice_pairs,
        headline="pair_accuracy",
    ),
    Task(
        name="mmstar",
        summary="MMStar: multiple choice that needs the image",
        layout="its Hugging Face dataset on disk",
        read=choices.read_mmstar,
        score=scorers.choices,
        headline="accuracy",
    ),
    Task(
        name="pope",
        summary="POPE: objects that are not there",
        layout=f"coco_pope_{{random,popular,adversarial}}.json and val2014/, {_ROWS}",
        read=choices.read_pope,
        score=scorers.pope,
        headline="f1",
    ),
    Task(
        name="price",
        summary="price from a product's image and text, SMAPE in percent",
        layout="chat JSON lines (sample_id, messages)",
        read=chats.read_prices,
        score=scorers.prices,
        headline="smape",
        higher_is_better=False,
    ),
    Task(
        name="qa",
        summary="questions of your own, exact match",
        layout="JSON lines (key, question, answers, images)",
        read=chats.read_own_questions,
        score=scorers.mean_of("exact_match", exact_match),
        headline="exact_match",
    ),
)
_BY_NAME = {task.name: task for task in TASKS}


def find_task(name: str) -> Task:
    """The task of a name; a ValueError that lists those there are where there is none."""
    if name not in _BY_NAME:
        raise ValueError(f"there is no task {name!r}; there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
