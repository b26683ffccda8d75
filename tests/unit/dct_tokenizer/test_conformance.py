"""The suite passes on every preset, and each clause notices an error planted for it."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from dct_tokenizer import build_tokenizer, list_presets
from dct_tokenizer.conformance import CLAUSES, run_suite
from dct_tokenizer.dct_front_end import DCTFrontEnd
from dct_tokenizer.families.block import BlockTokenizer


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_meets_every_clause(preset):
    verdicts = list(run_suite(build_tokenizer(preset)))
    assert [verdict.clause for verdict in verdicts] == list(CLAUSES)
    assert all(v.passed for v in verdicts), [v for v in verdicts if not v.passed]
    assert all(json.dumps(v.detail) for v in verdicts)


class BrokenConfig(BlockTokenizer):
    def config(self):
        return {**super().config(), "luma_keep": 3}


class BrokenPlan(BlockTokenizer):
    def plan(self, height, width, frames=1):
        plan = super().plan(height, width, frames)
        return replace(plan, wire_bytes=plan.wire_bytes + 1)


class BrokenSegments(BlockTokenizer):
    def plan(self, height, width, frames=1):
        plan = super().plan(height, width, frames)
        return replace(plan, vit_cu_seqlens=plan.vit_cu_seqlens[[0, -1]])


class BrokenPositions(BlockTokenizer):
    def plan(self, height, width, frames=1):
        plan = super().plan(height, width, frames)
        return replace(plan, mrope_positions=plan.mrope_positions[:, [0, 2, 1]])


class BrokenMerge(BlockTokenizer):
    def post_merge(self):
        return DropOne()


class DropOne(torch.nn.Module):
    def forward(self, features, grid_thw):
        return features[1:]


class BrokenStart(BlockTokenizer):
    def front_end(self, embed_dim, pretrained_weight=None):
        scaled = None if pretrained_weight is None else pretrained_weight * 1.001
        return super().front_end(embed_dim, scaled)


class BrokenDecode(BlockTokenizer):
    def decode(self, coefficients, plan):
        return np.flip(super().decode(coefficients, plan), axis=1)


class WideStill(BlockTokenizer):
    def cells(self, frames, plan):
        return super().cells(frames, plan).repeat(1, 2, 1, 1, 1)


class PatchedFrontEnd(BlockTokenizer):
    """A tokenizer whose front end is of another class."""

    module: type

    def front_end(self, embed_dim, pretrained_weight=None):
        front_end = super().front_end(embed_dim, pretrained_weight)
        front_end.__class__ = self.module
        return front_end


class HalfTrained(DCTFrontEnd):
    def forward(self, cells):
        frozen = torch.ones_like(self.weight)
        frozen[:, 5] = 0
        weight = self.weight
        mixed = weight * frozen + weight.detach() * (1 - frozen)
        self._parameters.pop("weight")
        self.weight = mixed
        try:
            return super().forward(cells)
        finally:
            del self.weight
            self._parameters["weight"] = weight


class BatchDependent(DCTFrontEnd):
    def forward(self, cells):
        output = super().forward(cells)
        return output - 1e-3 * output.mean(0)


class Forgetful(DCTFrontEnd):
    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {**state, "bias": torch.zeros_like(state["bias"])}


class LowPrecision(DCTFrontEnd):
    def _apply(self, fn, recurse=True):
        torch.nn.Module._apply(self, fn, recurse)
        self.mean, self.std = self.mean.bfloat16(), self.std.bfloat16()
        return self


class Unfoldable(DCTFrontEnd):
    def folded(self):
        weight, bias = super().folded()
        return weight.flip(-1), bias


class SeedDependent(BlockTokenizer):
    def front_end(self, embed_dim, pretrained_weight=None):
        front_end = super().front_end(embed_dim, pretrained_weight)
        with torch.no_grad():
            front_end.weight += 1e-9 * torch.randn_like(front_end.weight)
        return front_end


def patched(module: type) -> type[BlockTokenizer]:
    return type(f"With{module.__name__}", (PatchedFrontEnd,), {"module": module})


PLANTED = {
    "config": BrokenConfig,
    "plan": BrokenPlan,
    "segments": BrokenSegments,
    "positions": BrokenPositions,
    "merge": BrokenMerge,
    "start": BrokenStart,
    "decode": BrokenDecode,
    "still": WideStill,
    "gradients": patched(HalfTrained),
    "determinism": patched(BatchDependent),
    "state": patched(Forgetful),
    "precision": patched(LowPrecision),
    "replicas": SeedDependent,
    "export": patched(Unfoldable),
}


def test_every_clause_has_a_planted_error():
    assert PLANTED.keys() == CLAUSES.keys()


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_planted_error_is_noticed(clause):
    config = build_tokenizer("dct28_420").config()
    broken = PLANTED[clause](**{k: v for k, v in config.items() if k != "family"})
    (verdict,) = run_suite(broken, [clause])
    assert not verdict.passed, verdict.detail
    assert "ClauseError" in verdict.detail, verdict.detail


def test_an_exception_of_a_tokenizer_is_a_failure_not_a_crash():
    @dataclass(frozen=True, kw_only=True)
    class Crashing(BlockTokenizer):
        def encode(self, cells):
            raise RuntimeError("no coefficients today")

    crashing = Crashing(name="x", cell=28, luma_keep=28, chroma_keep=14)
    (decode,) = run_suite(crashing, ["decode"])
    assert not decode.passed
    assert "no coefficients today" in decode.detail
