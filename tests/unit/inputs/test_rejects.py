"""Samples that cannot be learnt from are left out, named and counted; too many stop the run."""

from __future__ import annotations

import io
import json
import traceback
from dataclasses import replace

import numpy as np
import pytest
from megatron.energon import SkipSample
from megatron.energon.errors import FatalSampleError
from megatron.energon.flavors.webdataset.sample_loader import RawSampleData
from megatron.energon.source_info import SourceInfo
from PIL import Image
from sample_chats import ROWS, crude, picture
from transformers import AutoTokenizer

from dct_tokenizer import build_tokenizer
from dct_tokenizer.decode import decode_rgb, header_size
from dct_tokenizer.upright import ImageError
from dct_vl.inputs.chat import ChatTokenizer
from dct_vl.inputs.encode import InputSpec
from dct_vl.inputs.rejects import RejectLog, RejectReader, count_rejects
from dct_vl.inputs.samples import CrudeChat, cook_chat
from dct_vl.training.data.task_encoder import ChatTaskEncoder
from dct_vl.training.processes.supervise import first_cause

GOOD = ROWS[2]


@pytest.fixture
def encoder(tiny_model, tmp_path) -> ChatTaskEncoder:
    return ChatTaskEncoder(
        inputs=InputSpec(
            chat=ChatTokenizer(AutoTokenizer.from_pretrained(tiny_model)),
            visual=build_tokenizer("pixel", min_pixels=784, max_pixels=50_000),
            seq_length=100,
        ),
        rejects=RejectLog(tmp_path / "rejects", "DATA", max_in_a_row=3),
    )


def sample(turns=None, images=None, record=None) -> CrudeChat:
    found = crude({**GOOD, "turns": turns or GOOD["turns"]}, "bad")
    found.record = found.record if record is None else record
    found.images = found.images if images is None else images
    return found


def truncated() -> bytes:
    data = picture(56, 56, 1)
    return data[: len(data) // 2]


BAD = {
    "schema": sample(record=b"{"),
    "image_count": sample(turns=[("human", "<image> <image>"), ("gpt", "a")]),
    "control_token": sample(turns=[("human", "<|im_start|>"), ("gpt", "a")]),
    "no_answer": sample(turns=[("human", "<image> a")]),
    "undecodable": sample(images=(b"no picture",)),
    "unplannable": sample(images=(picture(2, 600, 1),)),
    "too_long": sample(turns=[("human", "<image> what?"), ("gpt", "a b c d " * 100)]),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_fault_is_recorded_with_key_and_reason(encoder, tmp_path, reason):
    with pytest.raises(SkipSample, match=f"bad: {reason}"):
        encoder.preencode_sample(BAD[reason])
    (file,) = (tmp_path / "rejects").iterdir()
    entry = json.loads(file.read_text())
    assert (entry["key"], entry["reason"]) == ("bad", reason)
    assert entry["detail"]
    assert count_rejects(tmp_path / "rejects") == {reason: 1}


def test_too_long_says_how_long(encoder, tmp_path):
    big = sample(images=(picture(196, 196, 1),))
    encoder.inputs = replace(encoder.inputs, seq_length=60)
    with pytest.raises(SkipSample):
        encoder.preencode_sample(big)
    (file,) = (tmp_path / "rejects").iterdir()
    detail = json.loads(file.read_text())["detail"]
    assert detail.endswith("49 of them visual; data.seq_length is 60")


def test_a_picture_that_breaks_off_is_found_when_it_is_decoded(encoder, tmp_path):
    planned = encoder.preencode_sample(sample(images=(truncated(),)))
    with pytest.raises(SkipSample, match="undecodable"):
        encoder.postencode_sample(planned)
    assert count_rejects(tmp_path / "rejects") == {"undecodable": 1}


def test_rejects_in_a_row_stop_the_run(encoder, tmp_path):
    for _ in range(2):
        with pytest.raises(SkipSample):
            encoder.preencode_sample(BAD["schema"])
    encoder.postencode_sample(encoder.preencode_sample(crude(GOOD)))
    for _ in range(2):
        with pytest.raises(SkipSample):
            encoder.preencode_sample(BAD["no_answer"])
    with pytest.raises(FatalSampleError, match="3 samples in a row of DATA were rejected") as error:
        encoder.preencode_sample(BAD["too_long"])
    assert "too_long" in str(error.value)
    assert str(tmp_path / "rejects") in str(error.value)


def test_good_samples_between_bad_ones_count_before_any_is_decoded(encoder):
    """A buffer of packs is planned as a whole: hundreds of samples, and then the first decoded."""
    for _ in range(4):
        with pytest.raises(SkipSample):
            encoder.preencode_sample(BAD["too_long"])
        encoder.preencode_sample(crude(GOOD))


def test_pictures_that_all_break_off_stop_the_run_although_their_headers_are_whole(encoder):
    for count in range(3):
        planned = encoder.preencode_sample(sample(images=(truncated(),)))
        with pytest.raises(SkipSample if count < 2 else FatalSampleError, match="undecodable"):
            encoder.postencode_sample(planned)


def test_the_shard_and_what_to_do_are_recorded(encoder, tmp_path):
    bad = sample(turns=[("human", "<image> what?"), ("gpt", "a b c d " * 100)])
    bad.__sources__ = (
        SourceInfo(
            dataset_path="/data",
            index=7,
            shard_name="pretrain-000003.tar",
            file_names=("bad.json",),
        ),
    )
    with pytest.raises(SkipSample):
        encoder.preencode_sample(bad)
    (file,) = (tmp_path / "rejects").iterdir()
    entry = json.loads(file.read_text())
    assert entry["file"] == "/data/pretrain-000003.tar"
    assert entry["next"] == "raise data.seq_length, or lower data.max_pixels"


@pytest.mark.parametrize("reason", BAD)
def test_every_reason_has_a_next_step(encoder, tmp_path, reason):
    with pytest.raises(SkipSample):
        encoder.preencode_sample(BAD[reason])
    (file,) = (tmp_path / "rejects").iterdir()
    assert len(json.loads(file.read_text())["next"]) > 20


@pytest.mark.parametrize("reason", [*BAD, "another"])
def test_of_a_line_nothing_is_prepared_again(tmp_path, reason):
    log = RejectLog(tmp_path, "D", max_in_a_row=1)
    with pytest.raises(FatalSampleError) as caught:
        log.reject("3", reason, "x", file="D/x.jsonl")
    (file,) = tmp_path.iterdir()
    step = json.loads(file.read_text())["next"]
    assert len(step) > 20
    assert step in str(caught.value)
    assert "prepare" not in step
    if reason in ("schema", "undecodable", "no_answer"):
        assert "the line" in step


def test_the_same_sample_counts_once(tmp_path):
    """A restart meets the same samples again; a killed process leaves half a line."""
    for _ in range(2):
        with pytest.raises(SkipSample):
            RejectLog(tmp_path, "DATA").reject("a", "too_long", "x")
    with pytest.raises(SkipSample):
        RejectLog(tmp_path, "DATA").reject("b", "too_long", "x")
    with open(tmp_path / "other.jsonl", "wb") as file:
        file.write(b'{"key": "c", "reason": "schema", "detail": ""}\n{"key": "d", "rea')
    assert count_rejects(tmp_path) == {"too_long": 2, "schema": 1}
    assert count_rejects(tmp_path / "absent") == {}


def test_a_second_look_reads_only_what_is_new(tmp_path):
    """Of a line that is not whole yet, nothing; what an earlier look has read can even be gone."""
    reader = RejectReader(tmp_path, "reason")
    assert reader.read() == set()
    for key in ("a", "b"):
        with pytest.raises(SkipSample):
            RejectLog(tmp_path, "DATA").reject(key, "too_long", "x")
    assert reader.read() == {("too_long", "a"), ("too_long", "b")}
    (file,) = tmp_path.iterdir()
    file.write_bytes(b" " * file.stat().st_size + b'{"key": "c", "reason": "sch')
    other = tmp_path / "other.jsonl"
    other.write_bytes(b'{"key": "d", "note": "short"}\n')
    assert len(reader.read()) == 2
    with open(file, "ab") as opened:
        opened.write(b'ema"}\n')
    assert reader.read() == {("too_long", "a"), ("too_long", "b"), ("schema", "c")}
    assert RejectReader(tmp_path, "note").read() == {("short", "d")}


def test_without_a_folder_nothing_is_written():
    with pytest.raises(SkipSample):
        RejectLog(None, "DATA").reject("a", "schema", "x")


def test_cooking_leaves_bytes_as_they_are():
    parts = {"json": b"{}", "1.jpg": b"second", "0.jpg": b"first", "__key__": "k"}
    cooked = cook_chat({**parts, "__restore_key__": (), "__subflavors__": {}, "__sources__": ()})
    assert (cooked.__key__, cooked.record) == ("k", b"{}")
    assert cooked.images == (b"first", b"second")


@pytest.mark.parametrize(
    ("parts", "detail"),
    [
        ({"json": b"{}", "0.jpg": b"", "2.jpg": b""}, "numbers from 0 without a gap"),
        ({"jpg": b""}, "0 JSON parts"),
    ],
)
def test_parts_that_break_the_schema_are_recorded(encoder, tmp_path, parts, detail):
    keys = {"__key__": "k", "__restore_key__": (), "__subflavors__": {}, "__sources__": ()}
    with pytest.raises(SkipSample, match="k: schema"):
        encoder.preencode_sample(cook_chat({**parts, **keys}))
    (file,) = (tmp_path / "rejects").iterdir()
    assert detail in json.loads(file.read_text())["detail"]


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_picture_that_the_record_names_and_the_sample_lacks(encoder, tmp_path, kind):
    """Without a mark in the text the question would be learnt without its picture."""
    turns = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "a cat"}]

    def record(path):
        return json.dumps({"conversations": turns, kind: path}).encode()

    with pytest.raises(SkipSample, match="bad: schema"):
        encoder.preencode_sample(sample(record=record("a.bmp"), images=()))
    (file,) = (tmp_path / "rejects").iterdir()
    detail = json.loads(file.read_text())["detail"]
    assert f"the JSON names 1 {kind}s, the sample holds 0" in detail
    encoder.preencode_sample(sample(record=record(""), images=()))


def test_pictures_of_any_mode_come_as_rgb():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        buffer = io.BytesIO()
        Image.new(mode, (5, 3)).save(buffer, "TIFF")
        assert header_size(buffer.getvalue()) == (3, 5)
        assert decode_rgb(buffer.getvalue()).shape == (1, 3, 5, 3)
    pixels = decode_rgb(picture(3, 5, 9))
    assert pixels.dtype == np.uint8
    assert pixels.std() > 0


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", truncated()])
def test_damaged_bytes_are_one_kind_of_error(data):
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_rgb(data)


def test_a_damaged_header_is_said_to_be_one():
    with pytest.raises(ImageError, match="header cannot be read"):
        header_size(b"\x89PNG")


def test_a_run_of_failures_ends_with_its_cause_and_place(tmp_path):
    """Whatever fails, at whatever it fails, without a stack of the failure in front."""
    log = RejectLog(tmp_path / "rejects", "DATA", max_in_a_row=3)
    source = SourceInfo(dataset_path="W", index=3, shard_name="a.tar", file_names=("k.json",))
    raw = {"__key__": "k", "__sources__": (source,)}
    error = KeyError("two\nlines")
    log.record_error(error, raw)
    log.record_error(error, RawSampleData(__restore_key__=("Webdataset", 1), data=(raw,)))
    with pytest.raises(FatalSampleError) as caught:
        log.record_error(error, raw, [source])
    assert caught.value.__suppress_context__
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(
        "3 samples in a row of DATA were rejected at cooking, the last one k of W/a.tar: error "
        "(KeyError: "
    )
    assert f"all of them are in {tmp_path / 'rejects'}/*.jsonl" in text
    assert "report it with the sample" in text
    assert "data.max_rejects_in_a_row=3" in text


def test_the_recorder_of_errors_never_fails(tmp_path):
    """Samples of other types, halves of surrogate pairs, and nothing at all."""
    log = RejectLog(tmp_path / "rejects", "DATA")
    odd = [None, "text", 3, [], [None, {"__key__": "\ud800"}], {"__sources__": None}, object()]
    for sample in odd:
        log.record_error(ValueError("\udfff"), sample)
    (file,) = (tmp_path / "rejects").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["key"] for line in lines[-3:]] == ["\\ud800", "None", "None"]
    assert all(line["detail"] == "ValueError: \\udfff" for line in lines)


def test_a_rejection_that_stops_the_run_hides_what_led_to_it(encoder):
    """A loader process passes stacks on as text, of which the first would be taken."""
    encoder.rejects.max_in_a_row = 1
    with pytest.raises(FatalSampleError) as caught:
        encoder.preencode_sample(BAD["control_token"])
    stack = "".join(traceback.format_exception(caught.value))
    assert stack.count("Traceback") == 1
    assert first_cause(RuntimeError(stack)).startswith("FatalSampleError: 1 samples in a row")
