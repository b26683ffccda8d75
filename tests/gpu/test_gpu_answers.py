"""A trained checkpoint answers on the device."""

from __future__ import annotations

import gpu_device
import pytest
import torch

from dct_vl.runs.run_files import read_json_lines


@pytest.fixture(scope="module")
def model(runs):
    """Of a DCT tokenizer, whose fixed basis stayed on the host once."""
    from dct_vl.inference.loading import load_checkpoint

    return load_checkpoint(runs.checkpoint("local", 4))


def test_all_of_a_loaded_model_is_on_the_device(model):
    assert model.device.type == gpu_device.KIND
    # Megatron keeps angles that it has not needed yet wherever it likes
    assert not gpu_device.elsewhere(model.module.vision_model)
    assert len(list(gpu_device.tensors_of(model.module.vision_model.front_end))) >= 7


def test_words_are_scored(model, tmp_path):
    from dct_vl.evaluation.forward_pass import write_words

    output = tmp_path / "words.jsonl"
    found = write_words(model, output, split="val", limit=6, batch_size=3)
    lines = list(read_json_lines(output))
    assert found.num_words == sum(line["num_words"] for line in lines) > 0
    assert len(lines) == 6
    assert any(line["num_visual_tokens"] for line in lines)
    assert not found.rejected.by_reason


def test_questions_are_answered(model, tmp_path):
    from dct_vl.inference.generate.answers import AnswerOptions, write_answers

    output = tmp_path / "answers.jsonl"
    options = AnswerOptions(limit=6, batch_size=4, max_new_tokens=6)
    found = write_answers(model, options, output)
    lines = list(read_json_lines(output))
    assert found.num_questions == len(lines) >= 6
    assert all(line["step"] == 4 for line in lines)
    assert not found.rejected.by_reason


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("heads", "groups", "size"), [(12, 2, 128), (4, 4, 32), (8, 1, 64)])
def test_a_step_attends_as_on_the_host(dtype, tolerance, heads, groups, size):
    """Slots filled from nothing to the last place; only the first five of seven run."""
    from dct_vl.model.kv_cache import SlotCache

    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([0, 1, 63, 64, 199, 7, 100])
    rows = 5
    query, key, value = (
        torch.randn(1, rows, n, size, generator=generator) for n in (heads, groups, groups)
    )
    kept = [torch.randn(7, 200, groups, size, generator=generator) for _ in range(2)]
    found = []
    for device in ("cpu", gpu_device.KIND):
        cache = SlotCache(7, 200, torch.device(device))
        cache.lengths.copy_(lengths)
        there = dtype if device != "cpu" else torch.float32
        cache._layers[1] = tuple(k.to(dtype).to(device, there, copy=True) for k in kept)
        inputs = (x.to(dtype).to(device, there) for x in (query, key, value))
        found.append(cache.attend(1, *inputs, None).float().cpu())
        keys, values = cache._layers[1]
        for row, length in enumerate(lengths[:rows].tolist()):
            assert torch.equal(keys[row, length].cpu().float(), key[0, row].to(dtype).float())
            assert torch.equal(values[row, length].cpu().float(), value[0, row].to(dtype).float())
    assert (found[0] - found[1]).abs().max() < tolerance


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def asked(runs, request):
    """Prompts of the validation split, and the model in either dtype."""
    from dct_vl.inference.asked import Asked
    from dct_vl.inference.generate.answers import questions_of
    from dct_vl.inference.generate.engine import encode_request
    from dct_vl.inference.loading import load_checkpoint
    from dct_vl.inputs.shard_reader import read_split

    model = load_checkpoint(runs.checkpoint("local", 4), dtype=request.param)
    model.__dict__["end_ids"] = frozenset()
    samples = read_split(model.run.data.path, "val", 9, on_fault=lambda key, error: None)
    questions = [questions_of(sample, 4)[0] for sample in samples]
    prompts = [encode_request(model, one.request) for one in questions]
    return model, [Asked(prompt=p, limit=(3, 9, 20)[n % 3]) for n, p in enumerate(prompts)]


def answers_of(model, asked, num_slots, sampling, *, graphs=True):
    from dct_vl.inference.asked import Queue
    from dct_vl.inference.slots import SlotDecoder

    capacity = max(one.num_places for one in asked)
    decoder = SlotDecoder(model, sampling, num_slots=num_slots, capacity=capacity)
    assert decoder._graphs is not None
    if not graphs:
        decoder._graphs = None
    # twice: graphs are recorded in the second step of a number of rows
    for _ in range(2):
        found = {n: given.tokens for n, _, given in decoder.answer(Queue(asked))}
    return [found[n] for n in range(len(asked))]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_graphs_and_company_change_no_answer(asked, temperature):
    from dct_vl.inference.sampling import Sampling

    model, questions = asked
    sampling = Sampling(temperature=temperature, top_p=0.9, seed=1)
    alone = answers_of(model, questions, 1, sampling, graphs=False)
    assert [len(tokens) for tokens in alone] == [one.limit for one in questions]
    for num_slots in (1, 4, 9):
        found = answers_of(model, questions, num_slots, sampling)
        assert found == answers_of(model, questions, num_slots, sampling, graphs=False)
        # in bf16 two tokens that are equally likely may change places with the company
        if next(model.module.parameters()).dtype == torch.float32:
            assert found == alone
