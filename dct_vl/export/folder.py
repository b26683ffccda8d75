"""The folder to write and its files beside the weights: settings, tokenizer, model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from data_prep.model_folder import chat_template
from dct_tokenizer import VisualTokenizer
from dct_vl.export.tensors import ExportError, why_not_plain
from dct_vl.model.families.qwen_vl.config import MODEL_TYPES
from dct_vl.runs.checkpoint_files import read_meta
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.result_files import read_object
from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines, read_steps

#: copied as they are, where they exist
_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "LICENSE",
)
#: `model_type` → classes of transformers for model and processor
_CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
}
#: of a stock model, for a base folder that lacks the file; `processor_class` is missing
_STOCK_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def check_new(out: str | Path) -> Path:
    """The folder to write, which must be new or empty; raises ExportError where it is not."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not an empty folder: name a new one")
    return out


@contextmanager
def atomic_folder(out: str | Path) -> Iterator[Path]:
    """An atomic write of a folder: one beside `out`, renamed when the block ends without an error.

    Raises:
        ExportError: `out` holds something, or cannot be made.
    """
    out = check_new(out)
    unfinished = out.parent / f".{out.name}-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
    except OSError as error:
        raise ExportError(f"{out} cannot be made ({error}): name another folder") from error
    try:
        yield unfinished
        if out.exists():
            out.rmdir()
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented, keys sorted, as transformers writes them."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def copy_text_files(base: Path, out: Path) -> None:
    """Tokenizer, chat template and generation settings of the base folder."""
    for name in _COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    if not (out / "tokenizer.json").is_file() and not (out / "vocab.json").is_file():
        raise ExportError(f"{base} has no tokenizer.json and no vocab.json: no tokenizer to copy")
    # a processor of transformers 4.51.3 does not look for a template beside its tokenizer
    template = chat_template(base)
    if template and not list(out.glob("chat_template.*")):
        write_json(out / "chat_template.json", {"chat_template": template})


def model_type(base: Path) -> str:
    """What the base folder's config.json calls its model: a key of `MODEL_TYPES`.

    Raises:
        ValueError: another model, or no config.json.
    """
    found = read_object(base / "config.json").get("model_type")
    if found not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise ExportError(f"{base / 'config.json'} describes {found!r}; expected {known}")
    return str(found)


def model_settings(base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The base folder's config.json with the dtype of what is written."""
    config = read_object(base / "config.json")
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["architectures"] = [_CLASSES[model_type(base)][0]]
    return config


def processor_settings(base: Path, visual: VisualTokenizer) -> dict[str, Any]:
    """The base folder's preprocessor_config.json with the pixel bounds of the run."""
    path = base / "preprocessor_config.json"
    stock = {**_STOCK_PROCESSOR, "processor_class": _CLASSES[model_type(base)][1]}
    settings = read_object(path) if path.is_file() else stock
    return {**settings, **pixel_bounds(visual)}


def pixel_bounds(visual: VisualTokenizer) -> dict[str, Any]:
    """The bounds of an image's area for every release: 4.51.3 reads the first two, later ones
    `size`, whose edges are areas all the same.
    """
    low, high = visual.min_pixels, visual.max_pixels
    return {
        "min_pixels": low,
        "max_pixels": high,
        "size": {"shortest_edge": low, "longest_edge": high},
    }


def write_card(
    out: Path, run: RunConfig, run_folder: Path, checkpoint: Path, visual: VisualTokenizer
) -> None:
    """Write README.md into an exported folder.

    Args:
        run_folder: where its steps, validations and scores are, as far as there are any.
        visual: the tokenizer with its pixel bounds.
    """
    meta = read_meta(checkpoint)
    templates = Environment(
        loader=PackageLoader("dct_vl.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    text = templates.get_template("card.md.jinja").render(
        title=run.experiment_name,
        base=Path(run.model.path).name,
        model=MODEL_TYPES[model_type(Path(run.model.path))],
        step=meta["step"],
        tokenizer=run.tokenizer,
        reason=why_not_plain(visual),
        facts=_facts(run, run_folder, meta, visual),
        scores=_scores(run_folder),
        tokenizer_yaml=_yaml(run.tokenizer),
        settings_yaml=_yaml(_settings(run)) if run.data.path else "",
    )
    (out / "README.md").write_text(text, encoding="utf-8")


def _facts(
    run: RunConfig, run_folder: Path, meta: dict[str, Any], visual: VisualTokenizer
) -> list[tuple[str, str]]:
    step = meta["step"]
    facts = [
        ("pixels of an image", f"{visual.min_pixels:,} to {visual.max_pixels:,}"),
        ("steps", f"{step:,} of {run.trainer.max_steps:,}" if run.data.path else f"{step:,}"),
    ]
    if run.data.path:
        facts.append(("data", f"{Path(run.data.path).name} ({meta.get('data', 'not recorded')})"))
    last = next((e for e in reversed(read_steps(run_folder)) if e["step"] <= step), None)
    if last is not None:
        facts.append(("training loss", f"{_loss(last['loss'])} at step {last['step']:,}"))
    entries = read_json_lines(run_folder / VALIDATION_NAME)
    for entry in [e for e in entries if e["step"] <= step][-1:]:
        facts.append(("validation loss", f"{_loss(entry['loss'])} at step {entry['step']:,}"))
    return facts


def _loss(value: float | None) -> str:
    # JSON has no NaN, which a run may have gone through with trainer.on_bad_loss=ignore
    return "not finite" if value is None else f"{value:.4f}"


def _settings(run: RunConfig) -> dict[str, Any]:
    """What decides the training, without paths of the machine."""
    everything = asdict(run)
    chosen = {name: everything[name] for name in ("trainer", "optim", "model", "data")}
    for section, name in (("model", "path"), ("model", "cache_dir"), ("data", "path")):
        chosen[section].pop(name, None)
    return {**chosen, "seed": run.seed}


def _scores(run_folder: Path) -> list[tuple[str, str, float]]:
    """Scores in lmms-eval's `*_results.json` below the run's folder; newer files win."""
    found: dict[tuple[str, str], float] = {}
    for path in sorted(run_folder.glob("**/*_results.json"), key=lambda p: p.stat().st_mtime):
        try:
            results = read_object(path).get("results")
        except ValueError as error:
            raise ExportError(f"{error}: score again, or remove the file") from error
        for task, values in results.items() if isinstance(results, dict) else ():
            for metric, value in values.items() if isinstance(values, dict) else ():
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                if is_number and "stderr" not in metric:
                    found[task, metric.partition(",")[0]] = value
    return [(task, metric, value) for (task, metric), value in found.items()]


def _yaml(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
