"""Caption tokens are those of the Java program that published scores were made with."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pycocoevalcap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dct_vl.evaluation.metrics.ptb import PUNCTUATION, ptb_tokens, tokenize_captions

#: pairs of a line and what coco-caption makes of it, written by Stanford CoreNLP 3.4.1's
#: PTBTokenizer (the jar of pycocoevalcap 1.2) run on all lines together
GOLDEN = [
    tuple(pair) for pair in json.loads(Path(__file__).with_name("coco_tokens.json").read_text())
]
JAR = Path(pycocoevalcap.__path__[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"


def test_tokens_are_the_java_programs():
    lines, tokens = zip(*GOLDEN, strict=True)
    assert len(lines) > 90
    ours = tokenize_captions(lines)
    assert {line: o for line, o, t in zip(lines, ours, tokens, strict=True) if o != t} == {}


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")
def test_the_recorded_tokens_are_what_java_says(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(line for line, _ in GOLDEN), encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(JAR)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", str(file)]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    for (line, tokens), said in zip(GOLDEN, lines, strict=False):
        kept = " ".join(t for t in said.rstrip().split(" ") if t not in PUNCTUATION)
        assert kept == tokens, line


def test_how_a_capital_ends_depends_on_the_next_caption():
    assert tokenize_captions(["a sign with the letter S.", "A dog"])[0].endswith("letter s")
    assert tokenize_captions(["a sign with the letter S.", "dogs"])[0].endswith("letter s.")


def test_line_breaks_inside_a_caption_are_spaces():
    assert tokenize_captions(["a dog\nand\r\na cat."]) == ["a dog and a cat"]
    assert tokenize_captions(["", "  ", "."]) == ["", "", ""]


def test_punctuation_is_kept_before_coco_drops_it():
    assert " ".join(ptb_tokens('He said "hi", so.')) == "he said `` hi '' , so ."


@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=2), min_size=1))
@settings(max_examples=50, deadline=None)
def test_plain_words_stay(words):
    split = {"cannot", "gonna", "wanna", "gotta", "lemme", "gimme"}
    words = [word for word in words if word not in split]
    assert tokenize_captions([" ".join(words) + " ."]) == [" ".join(words)]


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_ends(text):
    (tokens,) = tokenize_captions([text])
    assert "\n" not in tokens
    assert not PUNCTUATION & set(tokens.split(" "))


@pytest.mark.parametrize("piece", ["a.", "-", "1/", "'", "a@", "a-", "#", "1,", "(", "www.", "a'"])
def test_what_a_model_repeats_without_end_takes_no_time(piece):
    """Models that lose the thread repeat themselves up to their token limit."""
    before = time.monotonic()
    tokenize_captions([piece * 1000])
    assert time.monotonic() - before < 10
