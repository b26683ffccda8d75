"""A Qwen2 tokenizer trained on the fly: byte-level BPE, Qwen2's pre-tokenizer, Qwen-VL's tokens."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen2.tokenization_qwen2_fast import Qwen2TokenizerFast

#: On the hub these are the ids 151643 … 151656; elsewhere they follow the BPE vocabulary at once.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
#: Id of <|endoftext|> in the hub's Qwen2-VL tokenizers, hence the size of their BPE vocabulary.
FIRST_SPECIAL_ID_2B = 151643

END_OF_TEXT, END_OF_TURN = "<|endoftext|>", "<|im_end|>"
SYSTEM_PROMPT = "You are a helpful assistant."
#: What every rendered conversation contains, repeated so that each word becomes one token.
TEMPLATE_TEXT = (SYSTEM_PROMPT, "system\n", "user\n", "assistant\n", "Picture 1: ", "Video 1: ")
TEMPLATE_REPEATS = 100


def train_tokenizer(
    corpus: Iterable[str], *, max_bpe_size: int, first_special_id: int | None = None
) -> Qwen2TokenizerFast:
    """Train on the texts of ``corpus`` and add the special tokens.

    max_bpe_size: upper bound of the BPE vocabulary; it starts with the 256 bytes.
    first_special_id: id of <|endoftext|>. By default it follows the vocabulary at once; a larger
        one is reached by filling up with entries that no merge produces, since a tokenizer.json
        numbers its added tokens from the end of the vocabulary whatever ids it states.

    Raises ValueError where ``first_special_id`` lies inside the trained vocabulary.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_bpe_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = itertools.chain(itertools.repeat("\n".join(TEMPLATE_TEXT), TEMPLATE_REPEATS), corpus)
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    if first_special_id is not None:
        if first_special_id < len(vocab):
            raise ValueError(
                f"first_special_id is {first_special_id}, inside the trained vocabulary of "
                f"{len(vocab)}: lower max_bpe_size"
            )
        vocab |= {f"<|unused_{number}|>": number for number in range(len(vocab), first_special_id)}
    return _qwen2_tokenizer(vocab, [tuple(pair) for pair in model["merges"]])


def _qwen2_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Qwen2TokenizerFast:
    """Through transformers' own converter, so that nothing differs from a Qwen2 tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        merges_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        tokenizer = Qwen2TokenizerFast(
            vocab_file=str(vocab_file),
            merges_file=str(merges_file),
            unk_token=None,
            bos_token=None,
            eos_token=END_OF_TURN,
            pad_token=END_OF_TEXT,
            added_tokens_decoder={
                len(vocab) + offset: AddedToken(token, special=True, normalized=False)
                for offset, token in enumerate(SPECIAL_TOKENS)
            },
            additional_special_tokens=list(SPECIAL_TOKENS[1:]),
            clean_up_tokenization_spaces=False,
            split_special_tokens=False,
            model_max_length=32768,
            errors="replace",
        )
    # renders messages exactly as the hub's Qwen2-VL template does
    template = resources.files("dct_vl.model.random_model") / "chat_template.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8").rstrip("\n")
    return tokenizer


def conversation_texts(path: Path) -> Iterator[str]:
    """Every message of a JSON list of ``{"conversations": [{"from", "value"}…]}``.

    Raises:
        ValueError: the file is not such a list.
    """
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            for message in entry["conversations"]:
                yield message["value"].replace("<image>", "").strip()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is not a JSON list of entries with conversations: {error!r}"
        ) from error
