"""What of the model is trained, and how fast: the modes and their checks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from dct_vl.errors import ConfigError
from dct_vl.model.parts import PARTS, Part
from dct_vl.runs.config.schema import ModelConfig, OptimConfig, RunConfig

TUNINGS = ("full", "tokenizer_only", "lora")

_FREEZES: dict[str, frozenset[Part]] = {
    "freeze_language_model": frozenset({"language"}),
    "freeze_vision_model": frozenset({"vision", "front_end"}),
    "freeze_vision_projection": frozenset({"projector"}),
}


def trained_parts(model: ModelConfig) -> frozenset[Part]:
    """Parts whose own weights are trained; adapters of LoRA come on top.

    Raises:
        ConfigError: an unknown mode or part, or freeze switches beside another mode than full.
    """
    switches = [name for name in _FREEZES if getattr(model, name)]
    if model.tuning not in TUNINGS:
        raise ConfigError(f"model.tuning={model.tuning!r}; expected one of {', '.join(TUNINGS)}")
    if model.tuning == "full":
        frozen: set[Part] = set()
        for name in switches:
            frozen |= _FREEZES[name]
        return frozenset(PARTS) - frozen
    if switches:
        raise ConfigError(
            f"model.{switches[0]} belongs to model.tuning=full; model.tuning={model.tuning} says "
            "itself what is trained (with lora: model.lora.also_train)"
        )
    if model.tuning == "tokenizer_only":
        return frozenset({"front_end", "projector"})
    unknown = [name for name in model.lora.also_train if name not in PARTS]
    if unknown:
        raise ConfigError(
            f"model.lora.also_train names {unknown[0]!r}; expected parts of {', '.join(PARTS)}"
        )
    return cast(frozenset[Part], frozenset(model.lora.also_train))


def rate_multipliers(optim: OptimConfig) -> dict[Part, float]:
    """Learning rate of each part as a multiple of `optim.lr`.

    Raises:
        ConfigError: a negative rate, or a part's own rate without a base rate.
    """
    if optim.lr <= 0:
        raise ConfigError(
            f"optim.lr={optim.lr}; expected more than 0 (model.tuning and the freeze switches "
            "keep parts as they are)"
        )
    multipliers: dict[Part, float] = {}
    for part in PARTS:
        rate = getattr(optim, f"lr_{part}")
        if rate is not None and rate < 0:
            raise ConfigError(f"optim.lr_{part}={rate}; expected at least 0, or null for optim.lr")
        multipliers[part] = 1.0 if rate is None else rate / optim.lr
    return multipliers


def check_tuning(run: RunConfig) -> None:
    """A ConfigError for the first of mode, adapters and rates that cannot work."""
    parts = trained_parts(run.model)
    rate_multipliers(run.optim)
    if run.model.tuning != "lora":
        if not parts:
            raise ConfigError("every part of the model is frozen: there is nothing to train")
        return
    lora, tp = run.model.lora, run.trainer.tensor_parallel_size
    if not lora.target_modules:
        raise ConfigError("model.lora.target_modules is empty: name at least one linear layer")
    if lora.rank < 1 or lora.rank % tp:
        raise ConfigError(
            f"model.lora.rank={lora.rank}; expected a positive multiple of TP_SIZE={tp}"
        )
    if not 0 <= lora.dropout < 1:
        raise ConfigError(f"model.lora.dropout={lora.dropout}; expected 0 or more and less than 1")


def tuning_settings(run: RunConfig) -> dict[str, Any]:
    """What decides which tensors an optimizer has and in which groups: a resumed run shares it."""
    return {
        "trained parts": sorted(trained_parts(run.model)),
        "model.lora": asdict(run.model.lora) if run.model.tuning == "lora" else None,
        "learning rates as multiples of optim.lr": rate_multipliers(run.optim),
        "trainer.distributed_optimizer": run.trainer.distributed_optimizer,
    }
