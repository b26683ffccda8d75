"""`dct-vl estimate`: memory, time and samples a day, as a table or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import Annotated, Any

import typer

from dct_vl.errors import ConfigError
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.config.schema import RunConfig
from dct_vl.runs.flops import peak_flops
from dct_vl.runs.model_sizes import ModelSizes, model_sizes
from dct_vl.training.estimate.estimate import Estimate, Workload, estimate
from dct_vl.training.estimate.memory import GIB, StageMemory

#: GiB that torch reports for a device, by words of its name; first match
DEVICE_GIB = {"B200": 178.0, "H200": 139.8, "H100": 79.1, "A100": 79.1, "L40S": 44.4, "L4": 22.0}
#: GiB beside the allocator's peak: CUDA context, NCCL, fragmentation
BESIDE_GIB = 3.0
_NOTHING_FITS = (
    "\nNo MBS, TP_SIZE and speed.recompute would fit: more GPUs, model.tuning=lora, a smaller "
    "data.seq_length or PP_SIZE may"
)


def estimate_command(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, as for `dct-vl fit`.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="2b, 7b, 3b25, 7b25 or a folder; model.path by default.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="GPUs of all nodes.")] = 1,
    device: Annotated[str, typer.Option(help="GPU, like H200, H100 or A100.")] = "H200",
    mfu: Annotated[float, typer.Option(help="Expected model FLOPs utilization, 0 to 1.")] = 0.4,
    picture: Annotated[
        str | None, typer.Option(help="Image size, HEIGHTxWIDTH; by default data.max_pixels.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Images of a sample.")] = 1,
    text: Annotated[int, typer.Option(help="Text tokens of a sample.")] = 128,
    answers: Annotated[
        int | None, typer.Option(help="Text tokens that carry loss; by default half.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the table.")] = False,
) -> None:
    """Estimate memory per GPU, time per step and samples per day, without any GPU."""
    run = compose_estimated(overrides or [])
    sizes = model_sizes(shape or run.model.path)
    work = Workload(
        num_gpus=gpus,
        picture=read_size(picture, run.data.max_pixels),
        pictures_per_sample=_at_least(pictures, 0, "--pictures"),
        text_tokens=_at_least(text, 1, "--text"),
        answer_tokens=min(
            text, -(-text // 2) if answers is None else _at_least(answers, 0, "--answers")
        ),
        peak_flops=_peak_of(device),
        mfu=_share(mfu),
    )
    result = estimate(run, sizes, work)
    memory = device_gib(device)
    if as_json:
        typer.echo(json.dumps(as_dict(result, sizes, memory), indent=2))
        return
    typer.echo(table(run, sizes, work, result, device))
    if memory is not None and not fits(result, memory):
        changes = list(islice(smaller(run, sizes, work, memory), 4))
        typer.echo("\nWould fit:" if changes else _NOTHING_FITS)
        for words, peak in changes:
            typer.echo(f"  {words:<48}{peak:6.1f} GiB")


def compose_estimated(overrides: Sequence[str]) -> RunConfig:
    """As `compose_config`, errors too; the data's path plays no part and may be left out."""
    keys = {word.partition("=")[0] for word in overrides}
    given = [] if "data.path" in keys else ["data.path=none"]
    return compose_config([*overrides, *given])


def read_size(text: str | None, max_pixels: int) -> tuple[int, int]:
    """HEIGHTxWIDTH in pixels; None is the square of `max_pixels`; a ConfigError for other forms."""
    if text is None:
        side = int(max_pixels**0.5)
        return side, side
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise ConfigError(f"--picture {text!r}; expected HEIGHTxWIDTH in pixels, like 448x336")
    return int(match[1]), int(match[2])


def device_gib(name: str) -> float | None:
    """Memory of a device by its name; None where unknown."""
    words = re.findall(r"[A-Z0-9]+", name.upper())
    return next((gib for word, gib in DEVICE_GIB.items() if word in words), None)


def fits(result: Estimate, memory: float) -> bool:
    """Does the typical micro batch fit into `memory` GiB?"""
    return result.typical_peak_gib + BESIDE_GIB <= memory


def fullest_fits(result: Estimate, memory: float) -> bool:
    """Does the largest micro batch that the settings let through fit into `memory` GiB?"""
    return result.fullest_peak_gib + BESIDE_GIB <= memory


def smaller(
    run: RunConfig, sizes: ModelSizes, work: Workload, memory: float
) -> Iterator[tuple[str, float]]:
    """Changes of one or two settings whose estimate fits, with the peak in GiB."""
    trainer = run.trainer
    tp, mbs = trainer.tensor_parallel_size, trainer.micro_batch_size
    fewer = [("", mbs)] + ([(f"MBS={mbs // 2} ", mbs // 2)] if mbs > 1 else [])
    for size in (tp, 2 * tp, 4 * tp, 8 * tp):
        for words, rows in fewer:
            for recompute in sorted({run.speed.recompute, True}):
                changed = replace(
                    run,
                    trainer=replace(trainer, tensor_parallel_size=size, micro_batch_size=rows),
                    speed=replace(run.speed, recompute=recompute),
                )
                if changed == run:
                    continue
                try:
                    result = estimate(changed, sizes, work)
                except ConfigError:
                    continue
                if fits(result, memory):
                    said = f"TP_SIZE={size} " * (size > tp) + words
                    said += "speed.recompute=true" * (recompute and not run.speed.recompute)
                    yield said, result.typical_peak_gib


def as_dict(result: Estimate, sizes: ModelSizes, memory: float | None) -> dict[str, Any]:
    """Everything, memory in bytes where the name does not say GiB."""
    stages = ("typical_stages", "fullest_stages")
    values = {k: v for k, v in asdict(result).items() if k not in stages}
    for name in stages:
        values[name] = [asdict(s) | {"peak": s.peak} for s in getattr(result, name)]
    return values | {
        "model": asdict(sizes),
        "typical_peak_gib": result.typical_peak_gib,
        "fullest_peak_gib": result.fullest_peak_gib,
        "samples_per_second": result.samples_per_second,
        "samples_per_day": 86400 * result.samples_per_second,
        "fits": None if memory is None else fits(result, memory),
        "fullest_fits": None if memory is None else fullest_fits(result, memory),
    }


def table(run: RunConfig, sizes: ModelSizes, work: Workload, result: Estimate, device: str) -> str:
    """The estimate for people."""
    trainer = run.trainer
    unit = "packs" if run.data.packing else "samples"
    height, width = work.picture
    rows = {
        "model, tokenizer": f"{sizes.name}, {run.tokenizer.get('name')}",
        "GPUs": f"{work.num_gpus} × {device}: TP {trainer.tensor_parallel_size} · "
        f"PP {trainer.pipeline_parallel_size} · CP {trainer.context_parallel_size} · "
        f"DP {result.data_parallel_size}",
        "batch": f"{trainer.micro_batch_size} {unit} a pass, {result.num_micro_batches} passes, "
        f"{trainer.global_batch_size} {unit} a step",
        "picture": f"{height} × {width}: {result.cells_per_picture:,} ViT patches, "
        f"{result.tokens_per_picture:,} tokens",
        "sample": f"{work.pictures_per_sample} pictures and {work.text_tokens:,} text tokens: "
        f"{result.tokens_per_sample:,} tokens",
        "step": f"{result.step_seconds:.2f} s at MFU {work.mfu:g} "
        f"({result.step_flops / 1e12:,.0f} TFLOP)",
        "samples": f"{result.samples_per_second:,.1f} a second, "
        f"{86400 * result.samples_per_second:,.0f} a day",
    }
    lines = [f"  {name:<18}{value}" for name, value in rows.items()]
    columns = (result.typical_stages, result.fullest_stages)
    typical, fullest = (max(stages, key=lambda s: s.peak) for stages in columns)
    lines.append(f"\n  {'GiB a GPU':<22}{'typical':>9}{'fullest':>9}")
    for name in StageMemory.__dataclass_fields__:
        values = (getattr(typical, name) / GIB, getattr(fullest, name) / GIB)
        lines.append(f"  {name.replace('_', ' '):<22}{values[0]:9.1f}{values[1]:9.1f}")
    peaks = (result.typical_peak_gib, result.fullest_peak_gib)
    lines.append(f"  {'peak':<22}{peaks[0]:9.1f}{peaks[1]:9.1f}")
    memory = device_gib(device)
    if memory is not None:
        verdict = "fits" if fits(result, memory) else "DOES NOT FIT"
        if fits(result, memory) and not fullest_fits(result, memory):
            bound = "data.max_patches_per_pack" if run.data.packing else "data.max_pixels"
            verdict = f"TYPICAL FITS, FULLEST DOES NOT ({bound} bounds it)"
        lines.append(
            f"  {verdict}: {device} has {memory:g} GiB, of which {BESIDE_GIB:g} are left for CUDA, "
            "NCCL and fragmentation"
        )
    lines.append(
        "\n  typical: passes of such samples; fullest: rows of data.seq_length tokens full of "
        "pictures,\n  the most that the settings let through. The peak has the optimizer's passes "
        "or what\n  precedes them, whichever is larger, not both."
    )
    return "\n".join(lines)


def _peak_of(device: str) -> float:
    peak = peak_flops(device)
    if peak is None:
        raise ConfigError(f"--device {device!r} is not known; name one like H200, H100 or A100")
    return peak


def _share(mfu: float) -> float:
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu}; expected a share between 0 and 1, like 0.4")
    return mfu


def _at_least(value: int, least: int, name: str) -> int:
    if value < least:
        raise ConfigError(f"{name} {value}; expected at least {least}")
    return value
