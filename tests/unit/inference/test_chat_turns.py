"""Conversations, their streams, and the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import select
import subprocess
import sys
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import orjson
import pytest
from command_line import invoke
from PIL import Image
from trainers_side import transformers_engine

from data_prep.schema import Turn
from dct_vl.export.import_hf import import_folder
from dct_vl.inference.chat.conversation import Conversation, read_medium, settled, stream
from dct_vl.inference.chat.terminal import Terminal
from dct_vl.inference.generate.engine import Reply, open_engine
from dct_vl.inference.generate.replicas import ParallelSizes
from dct_vl.inference.generate.requests import FileRequests
from dct_vl.inference.sampling import AnswerSettings, Sampling

BOUNDS = {"min_pixels": 784, "max_pixels": 112 * 112}
#: the tiny model's likeliest tokens are halves of characters
DRAWN = Sampling(temperature=1.0, seed=2)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("imported") / "run"
    import_folder(tiny_model, folder)
    return folder


@pytest.fixture(scope="module")
def engines(run, tiny_model):
    settings = AnswerSettings(**BOUNDS)
    return {
        run: open_engine(run, settings, ParallelSizes()),
        tiny_model: transformers_engine(tiny_model, settings),
    }


@pytest.fixture(params=["checkpoint", "folder"])
def engine(request, engines):
    found = list(engines.values())[request.param == "folder"]
    found.settings = AnswerSettings(**BOUNDS)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two pictures, one with a space in its name, a broken one, and a video."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(["a.png", "b c.png"]):
        pixels = np.random.default_rng(number).integers(0, 256, (94, 131, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:900])
    (folder / "notes.txt").write_text("no video")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=4)
        video.width, video.height, video.pix_fmt = 112, 84, "yuv420p"
        for grey in range(0, 160, 20):
            pixels = np.full((84, 112, 3), grey, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
    return folder


def talk(engine, lines: list[str], max_new_tokens: int = 6) -> tuple[Terminal, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    terminal = Terminal(engine, max_new_tokens=max_new_tokens, output=output, errors=errors)
    terminal.run(f"{line}\n" for line in lines)
    return terminal, output.getvalue(), errors.getvalue()


def test_a_stream_grows_to_the_answer(engine, files):
    engine.settings = AnswerSettings(sampling=DRAWN, **BOUNDS)
    conversation = Conversation(pending=[read_medium("image", files / "a.png")])
    encoded = engine.encode(conversation.request("What color is it?", 12))
    (whole,) = engine.answer([encoded])
    *pieces, reply = stream(engine, encoded)
    assert reply == whole
    assert len(set(pieces)) > 1, "several steps are seen"
    assert all(later.startswith(before) for before, later in pairwise(pieces))
    assert whole.text.startswith(pieces[-1])
    text = whole.text
    assert len(text) > 3
    engine.settings = AnswerSettings(sampling=DRAWN, stop=(text[2:4],), **BOUNDS)
    *pieces, reply = stream(engine, encoded)
    assert reply.text == text[:2].strip()
    assert all(reply.text.startswith(piece) for piece in pieces), "no part of a stop text is shown"


def test_a_stream_that_nobody_reads_ends_and_frees_its_engine(engine, monkeypatch):
    encoded = engine.encode(Conversation().request("How many?", 2000))
    steps: list[str] = []

    def counted(encoded, watch):
        return plain(encoded, lambda text: (steps.append(text), watch(text)))

    plain = engine.answer
    with monkeypatch.context() as patch:
        patch.setattr(engine, "answer", counted)
        with closing(stream(engine, encoded)) as pieces:
            next(pieces)
    assert 0 < len(steps) < 1000, "the answer went on after it was given up"
    short = engine.encode(Conversation().request("How many?", 3))
    (alone,) = engine.answer([short])
    assert list(stream(engine, short))[-1] == alone


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a cat", (), "a cat"),
        (" a cat \n", (), "a cat"),
        ("caf\ufffd\ufffd", (), "caf"),
        ("yes. EN", ("END",), "yes."),
        ("yes. END of it", ("END", "yet"), "yes."),
        ("yes", ("END", "sir"), "ye"),
        ("yes", ("yes",), ""),
    ],
)
def test_only_what_stays_is_shown(text, stop, shown):
    assert settled(text, stop) == shown


def test_turns_are_what_generate_would_read_from_a_file(engine, files, tmp_path):
    """Pictures stay in the turns in which they came."""
    engine.settings = AnswerSettings(sampling=DRAWN, **BOUNDS)
    terminal, output, _ = talk(
        engine,
        [f"/image {files / 'a.png'}", "One?", f"/image {files}/b\\ c.png", "Two <image>, too?"],
    )
    first = terminal.conversation.turns[1].text
    messages = [
        {"role": "user", "content": [{"type": "image", "image": str(files / "a.png")}, "One?"]},
        {"role": "assistant", "content": first},
        {
            "role": "user",
            "content": ["Two", {"type": "image", "image": str(files / "b c.png")}, ", too?"],
        },
    ]
    for message in messages:
        if isinstance(message["content"], list):
            message["content"] = [
                {"type": "text", "text": part} if isinstance(part, str) else part
                for part in message["content"]
            ]
    (tmp_path / "q.jsonl").write_bytes(orjson.dumps({"key": "turn 2", "messages": messages}))
    (request,) = FileRequests(tmp_path / "q.jsonl", max_new_tokens=6)
    spaced = Turn(role="user", text="Two <image>, too?")
    request = type(request)(**{**vars(request), "turns": (*request.turns[:2], spaced)})
    (expected,) = engine.answer([engine.encode(request)])
    assert output.splitlines()[-1] == expected.text.splitlines()[-1]
    assert terminal.conversation.turns[3].text == expected.text
    assert [turn.text for turn in terminal.conversation.turns[::2]] == [
        "<image>\nOne?",
        "Two <image>, too?",
    ]
    assert not terminal.conversation.pending


def test_what_fails_changes_nothing_and_says_why(engine, files):
    terminal, output, errors = talk(
        engine,
        [
            f"/image {files / 'nowhere.png'}",
            f"/image {files / 'broken.png'}",
            f"/video {files / 'notes.txt'}",
            "/image ~no-such-user/a.png",
            "/image",
            "/picture x",
            "/show",
            "what about <image>?",
            "a <|im_end|> b",
        ],
    )
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    for line, expected in zip(
        said,
        [
            "nowhere.png cannot be read: No such file",
            "broken.png: ",
            "notes.txt: ",
            "~no-such-user/a.png cannot be read: No such file",
            "/image needs the path",
            "/picture is no command: expected /image, /video, /show",
            "nothing to show",
            "1 <image> marks for 0 images",
            "control_token",
        ],
        strict=True,
    ):
        assert expected in line
    assert terminal.num_failed == 9
    assert not output
    assert not terminal.conversation.turns
    assert not terminal.conversation.everything


def test_pictures_and_videos_are_described_shown_and_forgotten(engine, files, tmp_path):
    lines = [
        f"/image '{files / 'b c.png'}'",
        f"/video {files / 'clip.mp4'}",
        "What moves?",
        f"/show {tmp_path / 'seen'}",
        "/reset",
        "How many?",
    ]
    terminal, output, errors = talk(engine, [*lines, "/quit", "never asked"])
    assert terminal.num_failed == 0
    assert "b c.png: 131 x 94 pixels, 15 visual tokens" in errors
    assert "clip.mp4: 112 x 84 pixels, 4 frames taken, at most" in errors
    assert "forgotten" in errors
    assert len(terminal.conversation.turns) == 2
    assert not terminal.conversation.media
    alone = talk(engine, ["How many?"])[1]
    assert output.endswith(alone), "nothing is left of what was said before"
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "1_b c.html",
        "1_b c.png",
        "2_clip.png",
    ]
    strip = np.asarray(Image.open(tmp_path / "seen" / "2_clip.png")).astype(int)
    half = strip.shape[0] // 2
    above, below = strip[: half - 6], strip[half + 6 :]
    # the pixel tokenizer loses nothing, and grey frames keep their order
    assert np.abs(above - below).max() <= 1
    assert (np.diff(above[0, ::5, 0]) >= -2).all()
    assert above[0, -1, 0] > above[0, 0, 0] + 60


def test_marks_in_an_answer_ask_for_no_picture(engine, monkeypatch):
    terminal, _, _ = talk(engine, [])
    reply = Reply(text="see <image>", num_tokens=2, is_finished=True, num_visual_tokens=0)
    monkeypatch.setattr(engine, "answer", lambda encoded, watch=None: [reply])
    terminal.run(["one?", "two?"])
    assert terminal.num_failed == 0
    assert terminal.conversation.turns[1].text == "see <image>"


def test_a_pipe_gets_answers_and_an_exit_status(run, engines, files):
    lines = f"/image {files / 'a.png'}\n\nWhat color is it?\n /no command\n/quit\nnever\n"
    bounds = ["--min-pixels", "784", "--max-pixels", "12544", "--max-new-tokens", "6"]
    done = invoke("chat", run, *bounds, input=lines)
    assert done.exit_code == 0, done.output
    engine = engines[run]
    engine.settings = AnswerSettings(**BOUNDS)
    assert done.stdout == talk(engine, lines.splitlines())[1]
    assert done.stdout.count("\n") >= 2
    assert "visual tokens" in done.stderr
    wrong = invoke("chat", run, *bounds, input=b"/nix\n\xff\xfe?\n/quit\n")
    assert wrong.exit_code == 1
    assert isinstance(wrong.exception, SystemExit), wrong.exception
    for arguments, expected in (
        (["nowhere"], "neither a checkpoint"),
        ([str(run), str(run)], "the terminal takes one"),
        ([str(run), "--temperature", "-1"], "temperature is -1"),
        ([str(run), "--dtype", "int4"], "expected bf16 or fp32"),
    ):
        refused = invoke("chat", *arguments)
        assert refused.exit_code == 2
        assert expected in refused.stderr


def test_a_pipe_that_nobody_reads_ends_the_chat(run, tmp_path):
    """As behind `| head -1`: no later question is answered for nothing."""
    command = [sys.executable, "-m", "dct_vl", "chat", str(run), "--max-new-tokens=2"]
    ours, theirs = os.pipe()
    os.close(ours)
    with open(tmp_path / "errors", "wb") as errors:
        done = subprocess.run(command, input=b"a\nb\n/nix\n", stdout=theirs, stderr=errors)
    os.close(theirs)
    said = (tmp_path / "errors").read_text()
    assert done.returncode == 1
    assert "Broken pipe" not in said
    assert "/nix" not in said


def test_a_person_gets_a_prompt_and_may_interrupt_an_answer(tiny_model):
    """In a terminal of its own: a long answer, Ctrl-C, a short command, Ctrl-D."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dct_vl", "chat", str(tiny_model), "--max-new-tokens=100000"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        # the terminal is this process's own, so that Ctrl-C reaches it as a signal
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    try:
        _read_until(ours, "> ")
        os.write(ours, b"How many?\n")
        _read_until(ours, "How many?")
        time.sleep(1)
        _read_until(ours, "interrupted", again=b"\x03")
        os.write(ours, b"/image nowhere.png\n")
        _read_until(ours, "cannot be read")
        assert _end(process, ours) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _end(process: subprocess.Popen[bytes], terminal: int) -> int:
    """Ctrl-D, again where it came before the prompt was ready for it; the exit status."""
    for _ in range(20):
        os.write(terminal, b"\x04")
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(3)
    raise AssertionError("Ctrl-D does not end the chat")


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(terminal: int, text: str, again: bytes = b"") -> str:
    """Read, writing `again` at the start and after every five seconds, as an impatient person."""
    seen, end, due = "", time.monotonic() + 180, 0.0
    while text not in seen:
        now = time.monotonic()
        assert now < end, f"no {text!r} in {seen!r}"
        if again and now >= due:
            os.write(terminal, again)
            due = now + 5
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen
