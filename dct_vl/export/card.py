"""The model card of an exported folder: what it is, how to load it, what it was made from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from dct_tokenizer import VisualTokenizer
from dct_vl.export.folder import model_type
from dct_vl.export.plain import why_not_plain
from dct_vl.export.tensors import ExportError
from dct_vl.model.families.qwen_vl.config import MODEL_TYPES
from dct_vl.runs.checkpoint_files import read_meta
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.result_files import read_object
from dct_vl.runs.run_files import VALIDATION_NAME, read_json_lines, read_steps


def write_card(
    out: Path, run: RunConfig, run_folder: Path, checkpoint: Path, visual: VisualTokenizer
) -> None:
    """Write README.md into an exported folder.

    Args:
        out: the folder.
        run: the run's configuration.
        run_folder: where its steps, validations and scores are, as far as there are any.
        checkpoint: what was exported.
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
        ("pixels of a picture", f"{visual.min_pixels:,} to {visual.max_pixels:,}"),
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
