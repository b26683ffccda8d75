"""A checkpoint, the folder that it came from and transformers answer alike; lmms-eval asks them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from trainers_side import transformers_engine

from data_prep.schema import Turn
from dct_vl.export.import_hf import import_folder
from dct_vl.inference.generate.engine import CheckpointEngine, open_engine
from dct_vl.inference.generate.replicas import ParallelSizes
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.sampling import AnswerSettings, Sampling
from dct_vl.model.families.qwen_vl.config import is_known_folder
from dct_vl.runs.checkpoint_files import files_fingerprint, weights_fingerprint


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory) -> tuple[Path, Path]:
    """(run with an imported checkpoint, Hugging Face folder)."""
    run = tmp_path_factory.mktemp("imported") / "run"
    import_folder(tiny_model, run)
    return run, tiny_model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for number, size in enumerate([(131, 94), (60, 150), (140, 90)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture(scope="module")
def requests(pictures) -> list[Request]:
    def ask(key: str, text: str, images: list[Path]) -> Request:
        turns = (Turn(role="user", text=text),)
        return Request(key=key, turns=turns, images=tuple(images), videos=(), max_new_tokens=6)

    return [
        ask("a", "Where is it?", pictures[:2]),
        ask("b", "How many?", []),
        ask("c", "What color is the<image> shape?", pictures[2:]),
    ]


@pytest.fixture(scope="module")
def engines(folders):
    bounds = {"min_pixels": 784, "max_pixels": 112 * 112}
    settings = AnswerSettings(**bounds)
    found = [open_engine(folder, settings, ParallelSizes()) for folder in folders]
    assert all(isinstance(engine, CheckpointEngine) for engine in found)
    found.append(transformers_engine(folders[1], settings))
    assert all((e.min_pixels, e.max_pixels) == (784, 112 * 112) for e in found)
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_give_the_same_answers(temperature, engines, requests):
    said = []
    for engine in engines:
        sampling = Sampling(temperature=temperature, top_p=0.9, seed=4)
        engine.settings = AnswerSettings(sampling=sampling)
        said.append(engine.answer([engine.encode(one) for one in requests]))
    assert said[0] == said[1] == said[2]
    assert len({reply.text for reply in said[0]}) > 1
    assert [reply.num_visual_tokens > 0 for reply in said[0]] == [True, False, True]


def test_all_give_the_same_answers_to_videos(tiny_model_25, tmp_path):
    """Qwen2.5-VL counts their time: both sides must take frames and rate from the same place."""
    # four frames of a second: ids twice as close as at the processor's usual two frames a second
    frames = np.random.default_rng(5).integers(0, 256, (31, 150, 230, 3), np.uint8)
    file = tmp_path / "clip.mp4"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 230, 150, "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    import_folder(tiny_model_25, tmp_path / "run")
    turns = (Turn(role="user", text="<video>When?"),)
    asked = Request(key="v", turns=turns, images=(), videos=(file,), max_new_tokens=6)
    said, scores = [], []
    asked_engines = [
        *(
            open_engine(p, AnswerSettings(), ParallelSizes())
            for p in (tmp_path / "run", tiny_model_25)
        ),
        transformers_engine(tiny_model_25, AnswerSettings()),
    ]
    for engine in asked_engines:
        encoded = engine.encode(asked)
        said.append(engine.answer([encoded]))
        scores.append(engine.score(encoded, "on the left")[0])
    assert said[0] == said[1] == said[2]
    assert said[0][0].num_visual_tokens > 100
    assert scores == pytest.approx([scores[2]] * 3, abs=1e-3)


def test_all_give_the_same_scores(engines, requests):
    for request in requests:
        shares, is_first = zip(
            *(e.score(e.encode(request), "on the left") for e in engines), strict=True
        )
        assert shares == pytest.approx([shares[2]] * 3, abs=1e-3)
        assert shares[0] < -1
        assert len(set(is_first)) == 1
    engine = engines[0]
    engine.settings = AnswerSettings()
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    from dct_vl.inference.generate.engine import score_of

    assert score_of(logits, [1, 0]) == (pytest.approx(-0.3133 - 0.1269, abs=1e-3), True)
    assert score_of(logits, [0, 0])[1] is False
    with pytest.raises(ValueError, match="no token"):
        engine.score(engine.encode(requests[1]), "")


def test_folders_with_code_are_not_trusted_by_themselves(tiny_model, tmp_path):
    settings = json.loads((tiny_model / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "x.Y"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="add --trust-remote-code"):
        open_engine(tmp_path, AnswerSettings(), ParallelSizes())
    with pytest.raises(ValueError, match="leave --tp and --pp out"):
        open_engine(tmp_path, AnswerSettings(), ParallelSizes(tensor=2), trust_remote_code=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"use_sliding_window": True},
        {"quantization_config": {"quant_method": "awq"}},
        {"torch_dtype": "float16"},
        {"model_type": "llava"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_the_model_does_not_cover_is_left_to_transformers(setting, tiny_model, tmp_path):
    settings = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert is_known_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, **setting}))
    assert not is_known_folder(tmp_path)


def test_a_folder_takes_of_videos_what_transformers_does(engines):
    rules = [engine.video_rules for engine in engines]
    assert rules[1] == rules[2]
    assert rules[0].total_pixels < rules[2].total_pixels  # as the run would train it


def test_lmms_eval_gets_the_same_answers_and_scores(folders, engines, requests, pictures, tmp_path):
    """Its own evaluator, task files and results; its own tasks' data would be downloaded."""
    pytest.importorskip("lmms_eval", reason="the extra lmms-eval is not installed")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from dct_vl.evaluation.lmms_eval_model import DctVL, manifest

    assert manifest().simple_class_path == "dct_vl.evaluation.lmms_eval_model.DctVL"
    rows = [
        {
            "text": one.turns[0].text.replace("<image>", ""),
            "files": [str(p) for p in one.images],
            "answer": "on the left",
        }
        for one in requests
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "utils.py").write_text(
        "from PIL import Image\n"
        "def visuals(doc):\n    return [Image.open(p) for p in doc['files']]\n"
        "def score(doc, results):\n    return {'length': len(str(results[0]))}\n"
    )
    shared = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path / 'rows.jsonl'}\n"
        "test_split: train\ndoc_to_visual: !function utils.visuals\n"
        "doc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
        "process_results: !function utils.score\n"
        "metric_list:\n  - metric: length\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (tmp_path / "asked.yaml").write_text(
        f"task: asked\noutput_type: generate_until\n{shared}"
        "generation_kwargs:\n  max_new_tokens: 6\n"
    )
    run = folders[0]
    model = DctVL(pretrained=str(run), batch_size=2, min_pixels=784, max_pixels=112 * 112)
    found = simple_evaluate(
        model=model,
        tasks=["asked"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    engine = engines[0]
    engine.settings = AnswerSettings()
    plain = [
        Request(
            key=one.key,
            turns=(Turn(role="user", text=row["text"]),),
            images=one.images,
            videos=(),
            max_new_tokens=6,
        )
        for one, row in zip(requests, rows, strict=True)
    ]
    expected = engine.answer([engine.encode(one) for one in plain])
    given = [sample["filtered_resps"][0] for sample in found["samples"]["asked"]]
    assert given == [reply.text for reply in expected]
    _assert_same_shape(found, tmp_path)
    from lmms_eval.api.instance import Instance

    model.task_dict = {"asked": {"train": rows}}
    asked = [
        Instance(
            request_type="loglikelihood",
            arguments=(row["text"], row["answer"], _open, place, "asked", "train"),
            idx=0,
            metadata={"task": "asked", "doc_id": place, "repeats": 1},
        )
        for place, row in enumerate(rows)
    ]
    scores = [engine.score(engine.encode(one), "on the left") for one in plain]
    assert model.loglikelihood(asked) == [(pytest.approx(s, abs=1e-4), g) for s, g in scores]
    strip = [Image.new("RGB", (300, 1))]
    asked[0].arguments = (rows[0]["text"], "x", lambda row: strip, 0, "asked", "train")
    assert model.loglikelihood(asked)[0] == (-math.inf, False)


def _assert_same_shape(found: dict, tmp_path: Path) -> None:
    """What lmms-eval writes of its results has the keys of what `score` writes."""
    from lmms_eval.loggers import EvaluationTracker

    from dct_vl.evaluation.score import read_predictions, score_predictions, write_results
    from dct_vl.evaluation.tasks.registry import find_task
    from dct_vl.evaluation.tasks.task import TaskItem

    tracker = EvaluationTracker(output_path=str(tmp_path / "theirs"))
    tracker.general_config_tracker.model_name_sanitized = "model"
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples, datetime_str="20260101_000000")
    tracker.save_results_samples("asked", samples["asked"])
    (tmp_path / "said.jsonl").write_text('{"key": "a", "answer": "b"}\n')
    turns = (Turn(role="user", text="?"),)
    item = TaskItem(key="a", turns=turns, images=(), references=("b",), max_new_tokens=1)
    report = score_predictions(find_task("qa"), [item], read_predictions(tmp_path / "said.jsonl"))
    results, lines = write_results(report, tmp_path / "ours")
    folder = tmp_path / "theirs" / "model"
    own, other = (
        json.loads(path.read_text()) for path in (results, folder / "20260101_000000_results.json")
    )
    assert own.keys() - {"problems"} <= other.keys()
    own, other = (
        json.loads(path.read_text().splitlines()[0])
        for path in (lines, folder / "20260101_000000_samples_asked.jsonl")
    )
    assert own.keys() - {"key", "group", "num_visual_tokens", "exact_match"} <= other.keys()


def _open(row: dict) -> list[Image.Image]:
    return [Image.open(path) for path in row["files"]]


@pytest.mark.parametrize("size", [(1000, 2), (20, 60)])
def test_a_folder_refuses_a_picture_before_it_is_in_a_batch(size, engines, requests, tmp_path):
    """Its processor would refuse it later, and with it the questions that share its batch."""
    Image.new("RGB", size).save(tmp_path / "thin.png")
    turns = (Turn(role="user", text="What is it?"),)
    images = (tmp_path / "thin.png",)
    thin = Request(key="thin", turns=turns, images=images, videos=(), max_new_tokens=2)
    folder = engines[2]
    with pytest.raises(ValueError, match=f"height:{size[1]}"):
        folder.encode(thin)


def test_a_copy_is_the_same_and_a_changed_tensor_is_not(tmp_path):
    ours = tmp_path / "ours"
    ours.mkdir()
    tensors = {f"layer{n}": torch.full((64, 64), float(n)) for n in range(200)}
    save_file(tensors, ours / "model.safetensors")
    copy = shutil.copytree(ours, tmp_path / "copy")
    assert files_fingerprint(copy, ("*.safetensors",)) == files_fingerprint(
        ours, ("*.safetensors",)
    )
    save_file({**tensors, "layer117": tensors["layer117"] + 1}, copy / "model.safetensors")
    assert files_fingerprint(copy, ("*.safetensors",)) != files_fingerprint(
        ours, ("*.safetensors",)
    )


def test_training_names_a_checkpoint_by_its_own_id(tmp_path):
    for name, meta in (("a", {"step": 2, "id": "x"}), ("b", {"step": 2, "id": "y"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dct_vl.json").write_text(json.dumps(meta))
    assert weights_fingerprint(tmp_path / "a") == "x"
    assert weights_fingerprint(tmp_path / "b") == "y"


@pytest.mark.parametrize("is_imported", [True, False])
def test_other_weights_under_the_same_name_are_another_engine(is_imported, tiny_model, tmp_path):
    folder, run = tmp_path / "folder", tmp_path / "run"
    shutil.copytree(tiny_model, folder)
    seen = []
    for _ in range(2):
        if is_imported:
            shutil.rmtree(run, ignore_errors=True)
            import_folder(folder, run)
        engine = open_engine(run if is_imported else folder, AnswerSettings(), ParallelSizes())
        seen.append(engine.identity())
        weights = {k: v + 0.01 for k, v in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before, after = seen
    assert before.pop("weights") != after.pop("weights")
    assert before == after
