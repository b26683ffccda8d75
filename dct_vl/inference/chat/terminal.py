"""A conversation in the terminal, or through a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import torch

from dct_vl.inference.chat.conversation import Conversation, describe, read_medium, write_seen
from dct_vl.inference.generate.engine import Engine, Reply
from dct_vl.inputs.chat import Kind

HELP = """\
/image PATH    show an image with the next question; may be repeated
/video PATH    show a video with the next question
/show [FOLDER] write what the model sees of all images and videos (FOLDER: chat_seen)
/reset         forget the conversation
/quit          end it, as does the end of the input
Everything else is a question; <image> and <video> in it mark where the next images belong."""


class Terminal:
    """Answers lines: questions and commands.

    Args:
        engine: that answers.
        max_new_tokens: an answer is cut there.
        output: where answers go.
        errors: where everything else goes, so that a pipe gets answers alone.
    """

    def __init__(
        self, engine: Engine, *, max_new_tokens: int, output: TextIO, errors: TextIO
    ) -> None:
        self.conversation = Conversation()
        #: lines that could not be done
        self.num_failed = 0
        self._engine = engine
        self._max_new_tokens = max_new_tokens
        self._output, self._errors = output, errors
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": lambda path: self._attach("image", path),
            "/video": lambda path: self._attach("video", path),
            "/show": self._show,
            "/reset": self._reset,
            "/help": lambda _: self._say(HELP),
        }

    def run(self, lines: Iterable[str]) -> None:
        """Take lines until one says /quit."""
        for line in lines:
            if line.strip() == "/quit":
                return
            if line.strip():
                self._take(line.rstrip("\r\n"))

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._ask(line.strip())
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self._fail("out of GPU memory: /reset, or start with a lower --max-pixels")
        except BrokenPipeError:
            # nobody reads the answers any more, as behind `| head`
            raise
        except (ValueError, OSError) as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self._output.write("\n")
            self._fail("interrupted; the question is forgotten")

    def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name not in self._commands:
            known = ", ".join([*self._commands, "/quit"])
            raise ValueError(
                f"{name} is no command: expected {known}; a question that starts with / needs a "
                "space before it"
            )
        self._commands[name](rest.strip())

    def _attach(self, kind: Kind, path: str) -> None:
        # as a shell writes a path that is dragged into its window
        path = path.strip("'\"").replace("\\ ", " ")
        if not path:
            raise ValueError(f"/{kind} needs the path of a file")
        try:
            medium = read_medium(kind, _at_home(path))
            self._say(describe(medium, self._engine))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from error
        self.conversation.pending.append(medium)

    def _show(self, folder: str) -> None:
        media = self.conversation.everything
        if not media:
            raise ValueError("nothing to show: /image PATH or /video PATH comes first")
        for number, medium in enumerate(media, start=1):
            path = _at_home(folder or "chat_seen") / f"{number}_{Path(medium.name).stem}"
            self._say(write_seen(medium, self._engine, path.with_name(f"{path.name}.png")))

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._say("forgotten")

    def _ask(self, question: str) -> None:
        shown = ""
        answer = self.conversation.ask(self._engine, question, self._max_new_tokens)
        with contextlib.closing(answer) as pieces:
            for piece in pieces:
                text = piece.text if isinstance(piece, Reply) else piece
                if not text.startswith(shown):
                    # a character that only looked whole: say it all again
                    self._output.write("\n")
                    shown = ""
                self._output.write(text[len(shown) :])
                self._output.flush()
                shown = text
                if isinstance(piece, Reply):
                    self._close(piece)

    def _close(self, reply: Reply) -> None:
        self._output.write("\n")
        self._output.flush()
        for damage in reply.damage:
            self._say(f"only a part of a video was seen: {damage}")
        if not reply.is_finished:
            self._say(f"cut off after {reply.num_tokens} tokens: --max-new-tokens allows more")

    def _say(self, text: str) -> None:
        self._errors.write(f"{text}\n")
        self._errors.flush()

    def _fail(self, text: str) -> None:
        self.num_failed += 1
        self._say(f"error: {text}")


def _at_home(path: str) -> Path:
    # not Path.expanduser, which raises RuntimeError for a user that nobody knows
    return Path(os.path.expanduser(path))


def typed_lines() -> Iterator[str]:
    """Lines of the standard input, with a prompt and editing where a person types them."""
    if not sys.stdin.isatty():
        # bytes that are no text belong to one question, not to the whole conversation
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        # not `yield from`, which would close the standard input with this iterator
        for line in sys.stdin:  # noqa: UP028
            yield line
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  - gives `input` editing and a history
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
