"""A conversation in a browser: an image, what each tokenizer leaves of it, questions and answers.

Nothing is loaded from anywhere but the machine itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

# read when gradio is imported; it would report to its maker
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import numpy as np
import torch

from dct_tokenizer import build_tokenizer, list_presets
from dct_tokenizer.decode import decode_rgb
from dct_tokenizer.show import look
from dct_vl.inference.chat.conversation import Conversation, numbers, read_medium
from dct_vl.inference.generate.engine import Engine, Reply

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TITLE = "dct-vl: see what the model sees, and ask"

Messages = list[dict[str, str]]


class Page:
    """What the page's parts do.

    Args:
        engines: label → model; the first one is chosen at the start.
        max_new_tokens: an answer is cut there.
    """

    def __init__(self, engines: Mapping[str, Engine], max_new_tokens: int) -> None:
        self.engines = dict(engines)
        self._max_new_tokens = max_new_tokens
        asked = {engine.visual.name for engine in engines.values()}
        #: those of the models, then presets that can be looked through only
        self.choices = [*engines, *(name for name in list_presets() if name not in asked)]

    def look(self, image: str | None, choice: str) -> tuple[np.ndarray | None, str]:
        """What is seen of an image, uint8 (H, W, 3), and its numbers."""
        if image is None:
            return None, "no image: questions are about text alone"
        with _shown_errors():
            pixels = decode_rgb(Path(image).read_bytes())[0]
            view = look(self._visual(choice), pixels)
        height, width = pixels.shape[:2]
        return view.seen, f"original {width} x {height}; {numbers(view)}"

    def ask(
        self, question: str, image: str | None, choice: str, conversation: Conversation
    ) -> Iterator[tuple[Messages, str, Conversation]]:
        """(messages so far, text of the question's box, conversation), again and again."""
        engine = self.engines.get(choice)
        if engine is None:
            raise gr.Error(
                f"{choice} can be looked through only: none of the models was trained with it. "
                f"Choose {', '.join(self.engines)}, or start with one more checkpoint."
            )
        if not question.strip():
            raise gr.Error("There is no question.")
        before = _messages(conversation)
        asked = {"role": "user", "content": question.strip()}
        with _shown_errors():
            if image is not None and not conversation.everything:
                conversation.pending.append(read_medium("image", Path(image)))
            with closing(
                conversation.ask(engine, question.strip(), self._max_new_tokens)
            ) as pieces:
                for piece in pieces:
                    text = piece.text if isinstance(piece, Reply) else piece
                    cut = isinstance(piece, Reply) and not piece.is_finished
                    answer = {"role": "assistant", "content": f"{text} […]" if cut else text}
                    yield [*before, asked, answer], "", conversation

    def _visual(self, choice: str) -> Any:
        if choice in self.engines:
            return self.engines[choice].visual
        first = next(iter(self.engines.values()))
        return build_tokenizer(choice, min_pixels=first.min_pixels, max_pixels=first.max_pixels)


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Turns errors about inputs into messages on the page."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise gr.Error("Out of GPU memory: start with a lower --max-pixels.") from error
    except (ValueError, OSError) as error:
        raise gr.Error(str(error)) from error


def _messages(conversation: Conversation) -> Messages:
    return [
        {"role": turn.role, "content": turn.text.removeprefix("<image>\n")}
        for turn in conversation.turns
    ]


def build(page: Page) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title=_TITLE, analytics_enabled=False) as blocks:
        conversation = gr.State(Conversation())
        gr.Markdown(f"### {_TITLE}")
        with gr.Row():
            with gr.Column():
                # the file itself, as the model takes it: no format or mode is changed
                image = gr.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=300,
                    buttons=["fullscreen"],
                    elem_id="picture",
                )
                choice = gr.Dropdown(
                    choices=page.choices,
                    value=page.choices[0],
                    label="Tokenizer",
                    info="Those of the models answer: " + ", ".join(page.engines),
                    elem_id="tokenizer",
                )
                facts = gr.Textbox(label="Numbers", interactive=False, lines=2, elem_id="numbers")
                seen = gr.Image(
                    label="What the model sees",
                    format="png",
                    interactive=False,
                    height=300,
                    buttons=["download", "fullscreen"],
                    elem_id="seen",
                )
            with gr.Column():
                messages = gr.Chatbot(
                    label="Conversation",
                    height=560,
                    render_markdown=False,
                    buttons=["copy"],
                    elem_id="messages",
                )
                question = gr.Textbox(label="Question", elem_id="question")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    again = gr.Button("New conversation", elem_id="again")
        blank: dict[str, Any] = {"outputs": [messages, conversation], "show_progress": "hidden"}
        for event in (image.change, choice.change):
            event(page.look, [image, choice], [seen, facts], api_visibility="private")
            # another image or tokenizer: the conversation was about something else
            event(lambda: ([], Conversation()), **blank, api_visibility="private")
        for event in (again.click, messages.clear):
            event(lambda: ([], Conversation()), **blank, api_visibility="private")
        for event in (ask.click, question.submit):
            event(
                page.ask,
                [question, image, choice, conversation],
                [messages, question, conversation],
                concurrency_id="engine",
                concurrency_limit=1,
                show_progress="hidden",
                api_visibility="private",
            )
    return blocks


def labels(engines: Mapping[Path, Engine]) -> dict[str, Engine]:
    """A name for each model: its tokenizer's, with the folder's where that is not enough."""
    names = [engine.visual.name for engine in engines.values()]
    found: dict[str, Engine] = {}
    for path, engine in engines.items():
        name = engine.visual.name
        label = name if names.count(name) == 1 else f"{name} of {path}"
        found[label] = engine
    return found


def serve(engines: Mapping[Path, Engine], max_new_tokens: int, *, host: str, port: int) -> None:
    """Serve the page until Ctrl-C; a ValueError where the port is taken."""
    if host not in _LOOPBACK:
        print(f"everyone who reaches {host}:{port} can ask, and upload files to this machine")
    # gradio asks its own page whether it is there, which a proxy would not find
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), *_LOOPBACK)))
    blocks = build(Page(labels(engines), max_new_tokens))
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            ssr_mode=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise ValueError(
            f"nothing can listen at {host}:{port} ({error}): choose another --port"
        ) from error
    print(f"open {address}; Ctrl-C ends it", flush=True)
    blocks.block_thread()
