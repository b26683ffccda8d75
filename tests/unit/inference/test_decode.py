"""The cache of keys and values changes nothing but the time."""

from __future__ import annotations

import gc
import io
import weakref
from dataclasses import replace

import av
import numpy as np
import orjson
import pytest
import torch
from PIL import Image
from trainers_side import loaded, question

from data_prep.schema import Turn
from dct_tokenizer import build_tokenizer
from dct_vl.inference import slots
from dct_vl.inference.asked import Asked, Decoded, Queue
from dct_vl.inference.decode import StepGraphs
from dct_vl.inference.generate.engine import CheckpointEngine, encode_request
from dct_vl.inference.generate.requests import Request
from dct_vl.inference.sampling import AnswerSettings, Sampling
from dct_vl.inference.slots import SlotDecoder
from dct_vl.inputs.batch import Batch, pad_batch
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog
from dct_vl.inputs.samples import CrudeChat
from dct_vl.model.kv_cache import SlotCache
from dct_vl.runs.config.compose import compose_config
from dct_vl.runs.derived import RunSettings
from dct_vl.training.data.task_encoder import ChatTaskEncoder

BOUNDS = {"min_pixels": 784, "max_pixels": 43904}
NEW_TOKENS = 7


@pytest.fixture(scope="module")
def model(build_module, tiny_model):
    return loaded(build_module("dct14"), build_tokenizer("dct14", **BOUNDS), tiny_model)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    files = []
    for number, size in enumerate([(131, 94), (60, 150), (200, 180)]):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
        files.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture(scope="module")
def prompts(model, pictures):
    """Prompts of very different lengths."""
    asked = [
        question("Where is it?", pictures[:2]),
        question("How many?"),
        question("What color is the shape on the left of the other one?", pictures[2:]),
    ]
    return [encode_request(model, one) for one in asked]


GREEDY = Sampling()


def slots_for(asked, model, sampling=GREEDY, num_slots=None, spare=0) -> SlotDecoder:
    capacity = max(one.num_places for one in asked) + spare
    return SlotDecoder(model, sampling, num_slots=num_slots or len(asked), capacity=capacity)


def ask(prompts, limits) -> list[Asked]:
    return [Asked(prompt=p, limit=n) for p, n in zip(prompts, limits, strict=True)]


def decode(model, prompts, limits, sampling=GREEDY, stop=(), **sizes) -> list[Decoded]:
    asked = ask(prompts, limits)
    found = finished(slots_for(asked, model, sampling, **sizes), asked, stop)
    return [found[number] for number in range(len(asked))]


def finished(decoder, asked, stop=(), watch=None) -> dict[int, Decoded]:
    return {n: given for n, _, given in decoder.answer(Queue(asked), stop, watch)}


@torch.inference_mode()
def without_cache(model, prompt, number: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and the logits of each, by the whole text again and again."""
    batch = pad_batch([prompt], visual=model.visual, pad_to=None, pad_multiple=1)
    visual = batch.visual
    ids, positions = batch.input_ids, batch.position_ids
    tokens, seen = [], []
    for _ in range(number):
        logits = model.module(Batch(input_ids=ids, position_ids=positions, visual=visual))[0, -1]
        seen.append(logits)
        tokens.append(int(logits.argmax()))
        ids = torch.cat((ids, torch.tensor([[tokens[-1]]])), dim=1)
        following = (positions[..., -1:].amax() + 1).expand(3, 1, 1)
        positions = torch.cat((positions, following), dim=2)
    return tokens, torch.stack(seen)


@pytest.mark.parametrize("fused", [False, True])
def test_tokens_and_logits_are_those_without_a_cache(
    fused, model, prompts, build_module, tiny_model, monkeypatch
):
    if fused:
        module = build_module("dct14", fused_layers=True)
        model = loaded(module, model.visual, tiny_model)
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    seen = []

    def choose(logits, draws, sampling):
        seen.append(logits.clone())
        return logits.argmax(-1)

    monkeypatch.setattr(slots, "choose", choose)
    found = decode(model, prompts, [NEW_TOKENS] * len(prompts))
    logits = torch.stack(seen, dim=1)
    for row, prompt in enumerate(prompts):
        tokens, expected = without_cache(model, prompt, NEW_TOKENS)
        assert list(found[row].tokens) == tokens
        assert (logits[row] - expected).abs().max() < 1e-4
    assert logits.std() > 0.5


def test_the_model_is_left_without_a_cache(model, prompts):
    decode(model, prompts[:1], [2])
    gc.collect()
    assert not any(isinstance(left, SlotCache) for left in gc.get_objects())


def test_each_answer_has_its_own_limit_and_stop(model, prompts, monkeypatch):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    free = decode(model, prompts, [NEW_TOKENS] * 3)
    short = decode(model, prompts, [1, 4, NEW_TOKENS])
    assert [len(one.tokens) for one in short] == [1, 4, NEW_TOKENS]
    for one, other in zip(free, short, strict=True):
        assert other.tokens == one.tokens[: len(other.tokens)]
        assert not other.is_finished
    mark = model.text(free[1].tokens[1:3])
    stopped = decode(model, prompts, [NEW_TOKENS] * 3, stop=(mark,))
    assert stopped[1].is_finished
    assert len(stopped[1].tokens) <= 3
    end = free[0].tokens[3]
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset([end]))
    ended = decode(model, prompts, [NEW_TOKENS] * 3)
    assert ended[0].is_finished
    assert ended[0].tokens == free[0].tokens[: free[0].tokens.index(end)]


def test_drawn_answers_do_not_depend_on_the_batch(model, prompts):
    options = Sampling(temperature=1.0, top_p=0.95, seed=3)
    together = decode(model, prompts, [NEW_TOKENS] * 3, options)
    alone = [decode(model, [one], [NEW_TOKENS], options)[0] for one in reversed(prompts)]
    assert together == alone[::-1]
    assert together != decode(model, prompts, [NEW_TOKENS] * 3)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.9, seed=1)])
def test_slots_are_filled_again_and_company_changes_nothing(model, prompts, sampling, monkeypatch):
    """Nine requests of three kinds and three limits, through any number of slots."""
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    many = [replace(prompts[n % 3], __key__=str(n)) for n in range(9)]
    limits = [(1, 6, 3)[n // 3 % 3] + n % 2 for n in range(9)]
    alone = [decode(model, [p], [n], sampling)[0] for p, n in zip(many, limits, strict=True)]
    for num_slots in (1, 2, 8, 9):
        assert decode(model, many, limits, sampling, num_slots=num_slots) == alone
    assert decode(model, many, limits, sampling, num_slots=4, spare=77) == alone


def test_requests_are_read_when_a_slot_is_free_and_answers_come_as_they_end(
    model, prompts, monkeypatch
):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    asked = ask([prompts[1]] * 4, [7, 2, 2, 2])
    read = []

    def arriving():
        for number, one in enumerate(asked):
            read.append(number)
            yield one

    answers = slots_for(asked, model, num_slots=2).answer(Queue(arriving()))
    order, known = [], []
    for number, one, _ in answers:
        assert one is asked[number]
        order.append(number)
        known.append(len(read))
    assert order == [1, 2, 3, 0]
    assert known == [2, 3, 4, 4]


def test_what_does_not_fit_waits_and_an_ended_watch_leaves_slots_free(model, prompts, monkeypatch):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    asked = ask(prompts[1:2] * 3, [3, 4, 3])
    decoder = slots_for(asked[:1], model, num_slots=2)

    def gone(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finished(decoder, asked, watch=gone)
    waiting = Queue(asked)
    (found,) = decoder.answer(waiting)
    assert found[2] == decode(model, prompts[1:2], [3])[0]
    assert waiting.first() == (1, asked[1])


def test_prompts_that_are_too_much_for_the_memory_run_in_halves(model, prompts, monkeypatch):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    many = [prompts[n % 3] for n in range(7)]
    expected = decode(model, many, [3] * 7)
    forward, sizes = slots.staged_forward, []

    def small_memory(module, batch, cache):
        sizes.append(len(batch.sample_lengths))
        if len(batch.sample_lengths) > 2:
            raise torch.OutOfMemoryError
        return forward(module, batch, cache)

    monkeypatch.setattr(slots, "staged_forward", small_memory)
    assert decode(model, many, [3] * 7) == expected
    assert max(sizes) > 2


def test_a_prompt_that_is_too_much_by_itself_is_one_error(model, prompts, monkeypatch):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    forward, longest = slots.staged_forward, max(len(p.input_ids) for p in prompts)

    def small_memory(module, batch, cache):
        if longest in batch.sample_lengths:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.")
        return forward(module, batch, cache)

    expected = [decode(model, [p], [3])[0] for p in prompts]
    monkeypatch.setattr(slots, "staged_forward", small_memory)
    found = decode(model, [*prompts, *prompts], [3] * 6, num_slots=2)
    for given, prompt, whole in zip(found, [*prompts, *prompts], expected * 2, strict=True):
        if len(prompt.input_ids) == longest:
            assert "too much for the memory: CUDA out of memory" in str(given)
        else:
            assert given == whole


class Eager(StepGraphs):
    """As on a device, without one."""

    def run(self, step, num_rows):
        step(num_rows)


@pytest.mark.parametrize("has_graphs", [False, True])
def test_slots_are_gone_before_longer_ones_are_made(model, prompts, monkeypatch, has_graphs):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    alive, caches = [], []
    cache_init, decoder_init = slots.SlotCache.__init__, slots.SlotDecoder.__init__

    def note(self, *arguments):
        alive.append(sum(cache() is not None for cache in caches))
        cache_init(self, *arguments)
        caches.append(weakref.ref(self))

    def with_graphs(self, *arguments, **options):
        decoder_init(self, *arguments, **options)
        if has_graphs:
            self._graphs = Eager()

    monkeypatch.setattr(slots.SlotCache, "__init__", note)
    monkeypatch.setattr(slots.SlotDecoder, "__init__", with_graphs)
    gc.collect()
    gc.disable()
    try:
        engine = CheckpointEngine(model, AnswerSettings())
        asked = ask([prompts[1]] * 3, [3, 300, 3])
        assert len(list(engine.stream(iter(asked), 2))) == 3
        assert alive == [0, 0]
    finally:
        gc.enable()


def test_slots_outlive_a_request_that_no_memory_would_hold(model, prompts, monkeypatch):
    monkeypatch.setitem(model.__dict__, "end_ids", frozenset())
    engine = CheckpointEngine(model, AnswerSettings())
    monkeypatch.setattr("dct_vl.inference.generate.engine.room_for_places", lambda model: 600)
    asked = ask([prompts[1]] * 4, [3, 5000, 3, 5000])
    found = dict(engine.stream(iter(asked), 2))
    held = engine.decoder
    assert [isinstance(found[n], ValueError) for n in range(4)] == [False, True, False, True]
    assert "there is memory for" in str(found[1])
    assert dict(engine.stream(iter(asked[:1]), 2))[0] == found[0]
    assert engine.decoder is held


def noise_video(num_frames: int) -> bytes:
    """Frames of random pixels, 64 × 96, 30 a second."""
    data = io.BytesIO()
    rng = np.random.default_rng(0)
    with av.open(data, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(num_frames):
            pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        output.mux(stream.encode())
    return data.getvalue()


def test_a_request_is_encoded_as_training_encodes_it(model, pictures, tiny_model, shards, tmp_path):
    """A picture and a video, with the answer that training has behind the prompt."""
    run = compose_config([f"data.path={shards}", f"model.path={tiny_model}", "tokenizer=dct14_t4"])
    visual = build_tokenizer("dct14_t4", **BOUNDS)
    model = replace(model, run=run, visual=visual)
    clip, picture = noise_video(20), pictures[0].read_bytes()
    text = "<video>Before or after?\n<image>"
    request = Request(
        key="k",
        turns=(Turn(role="user", text=text),),
        images=(picture,),
        videos=(clip,),
        max_new_tokens=3,
    )
    ours = encode_request(model, request)
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "After"}]
    encoder = ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(model.chat.tokenizer),
            visual=visual,
            video=RunSettings(run).video_rules,
            seq_length=run.data.seq_length,
        ),
        rejects=RejectLog(tmp_path, str(shards)),
    )
    crude = CrudeChat(
        __key__="k",
        __restore_key__=(),
        record=orjson.dumps({"conversations": turns}),
        images=(picture,),
        videos=(clip,),
    )
    theirs = encoder.postencode_sample(encoder.preencode_sample(crude))
    length = len(ours.input_ids)
    assert (ours.input_ids == theirs.input_ids[:length]).all()
    assert (ours.position_ids == theirs.position_ids[:, :length]).all()
    assert torch.equal(ours.visual.cells, theirs.visual.cells)
    assert theirs.is_answer[length:].any()
    assert not theirs.is_answer[:length].any()
    assert (ours.input_ids < 0).sum() > 20
