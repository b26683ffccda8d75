"""What is trained, what is not, at which rate, and adapters that come and go without a trace."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from dct_vl.errors import ConfigError
from dct_vl.model.parts import PARTS, LoraConfig
from dct_vl.runs.config.schema import ModelConfig, OptimConfig, RunConfig
from dct_vl.runs.config.tuning import check_tuning, rate_multipliers, trained_parts

EVERYWHERE = LoraConfig(
    target_modules=["linear_qkv", "linear_proj", "*.layers.*.linear_fc1", "*.layers.*.linear_fc2"],
    rank=4,
    alpha=8,
)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, set(PARTS)),
        ({"freeze_vision_model": True}, {"projector", "language"}),
        (
            {"freeze_language_model": True, "freeze_vision_projection": True},
            {"front_end", "vision"},
        ),
        ({"tuning": "tokenizer_only"}, {"front_end", "projector"}),
        ({"tuning": "lora"}, {"front_end", "projector"}),
        ({"tuning": "lora", "lora": LoraConfig(also_train=[])}, set()),
    ],
)
def test_parts_of_each_mode(settings, parts):
    assert trained_parts(ModelConfig(path="m", **settings)) == parts


@pytest.mark.parametrize(
    ("model", "optim", "complaint"),
    [
        ({"tuning": "qlora"}, {}, "model.tuning='qlora'; expected one of full"),
        ({"tuning": "lora", "freeze_language_model": True}, {}, "belongs to model.tuning=full"),
        (dict.fromkeys([f"freeze_{p}" for p in ("language_model", "vision_model",
         "vision_projection")], True), {}, "nothing to train"),
        ({"tuning": "lora", "lora": LoraConfig(rank=3)}, {}, "multiple of TP_SIZE=2"),
        ({"tuning": "lora", "lora": LoraConfig(dropout=1.0)}, {}, "model.lora.dropout=1.0"),
        ({"tuning": "lora", "lora": LoraConfig(also_train=["vit"])}, {}, "names 'vit'"),
        ({"tuning": "lora", "lora": LoraConfig(target_modules=[])}, {}, "target_modules is empty"),
        ({}, {"lr_vision": -1.0}, "optim.lr_vision=-1.0"),
        ({}, {"lr": 0.0}, "optim.lr=0.0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said(model, optim, complaint):
    run = RunConfig(tokenizer={}, model=ModelConfig(path="m", **model), optim=OptimConfig(**optim))
    run.trainer.tensor_parallel_size = 2
    with pytest.raises(ConfigError, match=complaint):
        check_tuning(run)


@pytest.fixture
def inputs(build_module):
    """A batch of one picture of 4 × 4 patches, for logits."""
    from dct_vl.inputs.batch import Batch, Segments, VisualInputs
    from dct_vl.inputs.chat import VISUAL_TOKEN_INDEX

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 256, (1, 12), generator=generator)
    ids[0, 3:7] = VISUAL_TOKEN_INDEX
    visual = VisualInputs(
        cells=torch.randint(0, 256, (16, 1, 3, 14, 14), generator=generator).to(torch.uint8),
        positions=torch.rand(16, 2, generator=generator).mul(4).floor(),
        segments=Segments.of([16]),
        grids=torch.tensor([[1, 4, 4]]),
        token_indices=torch.arange(3, 7),
    )
    positions = torch.arange(12).expand(3, 1, 12)
    return Batch(input_ids=ids, position_ids=positions, visual=visual)


@pytest.fixture
def adapted(build_module):
    """(module with adapters everywhere, names of the wrapped layers)."""
    from dct_vl.model.lora import apply_lora

    module = build_module("dct14")
    return module, apply_lora(module, EVERYWHERE, seed=1)


def disturb(module) -> None:
    """Make every adapter do something."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in module.named_parameters():
        if name.endswith("linear_out.weight"):
            parameter.data.normal_(std=0.1, generator=generator)


def test_adapters_start_at_the_base_model(build_module, adapted, inputs):
    module, names = adapted
    # four layers in each of two blocks of both stacks; the projector is no `layers`
    assert len(names) == 16
    with torch.no_grad():
        assert torch.equal(module(inputs), build_module("dct14")(inputs))


def test_merged_adapters_give_the_same_logits(build_module, adapted, inputs):
    from dct_vl.model.lora import merge_lora

    module, names = adapted
    disturb(module)
    with torch.no_grad():
        unmerged = module(inputs)
        assert sorted(merge_lora(module)) == sorted(names)
        merged = module(inputs)
    plain = build_module("dct14")
    assert (unmerged - plain(inputs)).abs().max() > 1e-2
    assert (merged - unmerged).abs().max() < 1e-5
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert merge_lora(module) == []


def test_the_start_depends_on_names_and_seed_alone(build_module, adapted):
    from dct_vl.model.lora import apply_lora

    def first_matrices(seed):
        torch.rand(3)
        module = build_module("dct14")
        apply_lora(module, EVERYWHERE, seed=seed)
        return [p.detach() for n, p in module.named_parameters() if n.endswith("linear_in.weight")]

    once = [p.detach() for n, p in adapted[0].named_parameters() if n.endswith("linear_in.weight")]
    same, other = first_matrices(1), first_matrices(2)
    assert len({float(p.sum()) for p in once}) == len(once) == 16
    assert all(torch.equal(a, b) for a, b in zip(once, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(once, other, strict=True))
    wide = max(once, key=torch.Tensor.numel)
    assert float(wide.std()) == pytest.approx((2 / sum(wide.shape)) ** 0.5, rel=0.1)


def test_plain_names_load_below_the_wrapper(build_module, adapted, inputs):
    module, _ = adapted
    disturb(module)
    state = copy.deepcopy(module.state_dict())
    assert not any("to_wrap" in name for name in state)
    from dct_vl.model.lora import apply_lora

    other = build_module("dct14")
    apply_lora(other, EVERYWHERE, seed=2)
    for parameter in other.parameters():
        parameter.data.fill_(torch.nan)
    other.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(other(inputs), module(inputs))


def test_only_gated_layers_are_stored_in_halves(adapted):
    """NeMo would store the ViT's plain MLP so, and mix its rows when the layout changes."""
    from dct_vl.model.weights import module_shards

    count = {"language": 0, "vision": 0}
    for shard in module_shards(adapted[0]):
        if shard.key.endswith("linear_fc1.adapter.linear_out.weight"):
            count["language" if shard.key.startswith("language") else "vision"] += 1
    assert count == {"language": 2 * 2, "vision": 2}


@pytest.mark.parametrize("target", ["linear_qv", "language_model.*.core_attention"])
def test_targets_that_are_no_layers(build_module, target):
    from dct_vl.model.lora import apply_lora

    lora = LoraConfig(target_modules=[target])
    with pytest.raises(ConfigError, match=r"model\.lora\.target_modules"):
        apply_lora(build_module("pixel"), lora)


def test_an_adapter_on_the_output_layer(build_module, inputs, monkeypatch):
    """Only where the layer has a weight of its own; its losses are those without chosen tokens."""
    from dct_vl.model.lora import apply_lora

    module = build_module("dct14")
    lora = LoraConfig(target_modules=["language_model.output_layer"], rank=4)
    with pytest.raises(ConfigError, match="output_layer, whose weight is the embedding's"):
        apply_lora(module, lora)
    monkeypatch.setattr(module.language_model, "share_embeddings_and_output_weights", False)
    weight = module.language_model.embedding.word_embeddings.weight
    module.language_model.output_layer.weight = torch.nn.Parameter(weight.detach().clone())
    assert apply_lora(module, lora) == ["language_model.output_layer"]
    disturb(module)
    labels = torch.randint(0, 256, (1, 12), generator=torch.Generator().manual_seed(1))
    places = torch.tensor([9, 10])
    with torch.no_grad():
        every, _ = module(replace(inputs, labels=labels))
        some, _ = module(replace(inputs, labels=labels, answer_indices=places))
        assert torch.equal(some[:, places], every[:, places])
        logits = module(inputs)
        chosen = module(replace(inputs, answer_indices=places))
    torch.testing.assert_close(chosen[:, 0], logits[0, places])


def test_parameters_are_counted_by_part(adapted):
    from dct_vl.model.parts import count_parameters, freeze_parts

    module, _ = adapted
    freeze_parts(module, {"front_end"})
    counts = count_parameters(module)
    assert sum(c.total for c in counts.values()) == sum(p.numel() for p in module.parameters())
    front_end = sum(p.numel() for p in module.vision_model.front_end.parameters())
    assert counts["front_end"].trained == counts["front_end"].total == front_end
    assert counts["projector"].trained == 0
    for part in ("vision", "language"):
        assert counts[part].trained == counts[part].adapters > 0
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert sum(c.trained for c in counts.values()) == trained


@pytest.fixture
def groups(build_module):
    """groups(rates) → Megatron's parameter groups of the tiny model, named."""
    import megatron.core.optimizer as megatron_optimizer

    from dct_vl.training.optim.optimizer import _groups_by

    def make(**rates):
        module = build_module("dct14")
        multipliers = rate_multipliers(OptimConfig(lr=1e-4, **rates))
        names = {id(p): n for n, p in module.named_parameters()}
        stock = megatron_optimizer._get_param_groups
        with _groups_by(multipliers):
            found = megatron_optimizer._get_param_groups(
                [module], None, None, 1.0,
                lr=1e-4, min_lr=0.0, decoupled_lr=None, decoupled_min_lr=None,
            )  # fmt: skip
        assert megatron_optimizer._get_param_groups is stock
        for group in found:
            group["names"] = [names[id(p)] for p in group["params"]]
        assert sorted(n for g in found for n in g["names"]) == sorted(names.values())
        return found

    return make


def test_each_part_gets_its_rate_and_only_weights_decay(groups):
    from dct_vl.model.parts import part_of

    expected = {"front_end": 10.0, "vision": 0.5, "projector": 10.0, "language": 1.0}
    found = groups(lr_front_end=1e-3, lr_vision=5e-5, lr_projector=1e-3)
    assert len({(g["lr_mult"], g["wd_mult"]) for g in found}) == len(found) == 6
    for group in found:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert group["lr_mult"] == pytest.approx(expected[part_of(name)])
            plain = parameter.ndim == 1 or name.endswith(".bias")
            assert group["wd_mult"] == (0.0 if plain else 1.0), name


def test_the_stock_optimizer_makes_the_groups_where_all_rates_are_one(groups):
    assert [(g["lr_mult"], g["wd_mult"]) for g in groups()] == [(1.0, 0.0), (1.0, 1.0)]


def test_a_resumed_run_shares_what_is_trained(build_module, shards, tmp_path):
    """Another rank, part or ratio of rates has other tensors or groups in its optimizer."""
    from dct_vl.runs.checkpoint_files import META_NAME
    from dct_vl.training.restart.resume import find_resume, stream_settings, tensor_settings

    def run_of(**model) -> RunConfig:
        run = RunConfig(tokenizer={"name": "pixel"}, model=ModelConfig(path="m", **model))
        run.data.path = str(shards)
        return run

    run = run_of(tuning="lora")
    checkpoint = tmp_path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    meta = {"step": 2, **stream_settings(run), "tuning": tensor_settings(run)}
    (checkpoint / META_NAME).write_text(json.dumps(meta))
    assert find_resume(run, tmp_path) == checkpoint
    for other, name in (
        (run_of(tuning="lora", lora=LoraConfig(rank=8)), "model.lora"),
        (run_of(tuning="tokenizer_only"), "model.lora"),
        (run_of(), "trained parts"),
    ):
        with pytest.raises(ConfigError, match=f"was trained with {name} = "):
            find_resume(other, tmp_path)
    run.trainer.distributed_optimizer = False
    with pytest.raises(ConfigError, match=r"trained with trainer\.distributed_optimizer = True"):
        find_resume(run, tmp_path)
    run.optim.lr_vision = run.optim.lr / 2
    with pytest.raises(ConfigError, match=r"learning rates as multiples of optim\.lr"):
        find_resume(run, tmp_path)
