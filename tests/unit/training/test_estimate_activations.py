"""What the estimator says a layer keeps, against what autograd keeps of the real layers."""

from __future__ import annotations

import pytest
import torch

from dct_vl.training.estimate.memory import layer_bytes

NUM_ROWS = 256


def kept_bytes(layer: torch.nn.Module, hidden: torch.Tensor, rotary: torch.Tensor) -> int:
    """Bytes of all storages that the graph of a forward pass holds, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    storages = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(hidden, rotary_pos_emb=rotary, attention_mask=None, packed_seq_params=None)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(
    ("tower", "kind"),
    [
        ("vision_model", "tiny_model"),
        ("vision_model", "tiny_model_25"),
        ("language_model", "tiny_model"),
    ],
)
def test_a_layer_keeps_what_is_estimated(build_module, tower, kind, request):
    folder = request.getfixturevalue(kind)
    module = build_module("pixel", folder, fused_layers=True).train()
    decoder = getattr(module, tower).decoder
    config = decoder.config
    rows = 1 if tower == "vision_model" else 2
    hidden = torch.randn(NUM_ROWS // rows, rows, config.hidden_size, requires_grad=True)
    rotary = torch.randn(NUM_ROWS // rows, 1, 1, config.kv_channels)
    found = kept_bytes(decoder.layers[0], hidden, rotary) / NUM_ROWS

    head = config.kv_channels
    expected = 2 * layer_bytes(  # float32 here
        width=config.hidden_size,
        queries=config.num_attention_heads * head,
        keys=config.num_query_groups * head,
        mlp=config.ffn_hidden_size,
        gated=config.gated_linear_unit,
        is_vision=tower == "vision_model",
        fused=True,
    )
    # where nothing is compiled, an RMS norm keeps its rows before the weight
    expected += 4 * config.hidden_size * (config.normalization == "RMSNorm")
    # cosine and sine, which all layers share
    expected += 2 * 4 * head / rows
    # the rest does not grow with the width, which is small here: statistics
    assert expected < found < expected + 160
