"""What a Hugging Face folder says of text: its chat template, and the tokens that no text may hold.

Content tokens, such as those of grounding (``<|box_start|>``) and those that a user added, are text
like any other. Those that the template itself writes, those of vision and those that end or fill
up a sequence are not: in a text they would end its turn, or stand for an image that is not there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

#: Qwen2-VL's and Qwen2.5-VL's.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|vision_start|>",
)
_CONFIG = "tokenizer_config.json"
_ENDS = ("bos_token", "eos_token", "pad_token", "unk_token")


class FolderError(ValueError):
    """A folder whose files do not say it; the message names the file."""


def chat_template(folder: str | Path) -> str | None:
    """The template of a folder's chats; None where it has none.

    The processor's comes first (``chat_template.jinja``, then ``chat_template.json``): Qwen2.5-VL
    folders have one for text alone beside their tokenizer.
    """
    root = Path(folder)
    if (raw := root / "chat_template.jinja").is_file():
        return raw.read_text(encoding="utf-8")
    for name in ("chat_template.json", _CONFIG):
        if found := _read(root / name).get("chat_template"):
            return template_text(found)
    return None


def template_text(template: Any) -> str:
    """A template as text: of several with names, the default one."""
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}
    return str(template.get("default", "")) if isinstance(template, dict) else str(template)


def control_tokens(folder: str | Path) -> tuple[str, ...]:
    """Tokens that texts for the model of a folder must not hold, in order; raises FolderError."""
    config = _read(Path(folder) / _CONFIG)
    if not config:
        raise FolderError(f"{folder} has no {_CONFIG}: expected the folder of a model or tokenizer")
    added = [token["content"] for token in config.get("added_tokens_decoder", {}).values()]
    added += _read(Path(folder) / "added_tokens.json")
    ends = [_content(config.get(name)) for name in _ENDS]
    return control_among(added, chat_template(folder) or "", ends)


def control_among(
    added: Iterable[str], template: str, ends: Iterable[str | None]
) -> tuple[str, ...]:
    """Those of a tokenizer's added tokens that are the template's, vision's, ends or padding.

    Args:
        added: every token beside the vocabulary.
        template: of the chats, as text.
        ends: what begins, ends and fills up sequences; None where there is none.
    """
    ends = {*ends, *CONTROL_TOKENS}
    return tuple(sorted({token for token in added if token in ends or token in template}))


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise FolderError(f"{file} is damaged ({error}): fetch it again") from error
    if not isinstance(found, dict):
        raise FolderError(f"{file} holds a {type(found).__name__}; expected an object")
    return found
