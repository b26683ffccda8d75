"""Norms with a state of their own, as Transformer Engine's are, read checkpoints of others."""

from __future__ import annotations

import torch

from dct_vl.model.layer_specs import expect_no_norm_state


class NormWithState(torch.nn.RMSNorm):
    """Like Transformer Engine's: an extra state, which may be empty."""

    loaded = "nothing"

    def get_extra_state(self):
        return torch.zeros(0)

    def set_extra_state(self, state):
        self.loaded = state


def test_checkpoints_have_the_same_names_and_load(build_module):
    module = build_module("pixel")
    names = set(module.sharded_state_dict(prefix="module."))
    weights = module.state_dict()
    norm = NormWithState(module.language_model.decoder.config.hidden_size)
    module.language_model.decoder.final_layernorm = norm
    expect_no_norm_state(module)
    assert set(module.sharded_state_dict(prefix="module.")) == names
    module.load_state_dict(weights)
    assert norm.loaded is None
    assert torch.equal(norm.weight, weights["language_model.decoder.final_layernorm.weight"])
