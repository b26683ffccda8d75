"""Options that determine the bytes of the shards."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from data_prep.model_folder import CONTROL_TOKENS

Verify = Literal["structure", "decode", "none"]
TextOnly = Literal["drop", "keep"]

#: Pixels a visual token covers on each side: patches of 14, merged 2 by 2.
FACTOR = 28
DEFAULT_SHARD_SIZE = 10_000
#: a size that the header of a plain tar has no room for
MAX_MEMBER_BYTES = 8**11
#: Small sets are spread over this many shards, so that a split of 8,1,1 leaves no part empty.
MIN_SHARDS = 10


class OptionError(ValueError):
    """An option with a value that cannot be used; the message names it as typed."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How entries become samples and samples shards."""

    verify: Verify = "decode"
    text_only: TextOnly = "drop"
    reencode: bool = False  #: every image through Pillow's default JPEG encoder
    presize: tuple[int, int, int] | None = None  #: pixel bounds and factor of smart_resize
    shard_size: int | None = None  #: samples; None: 10,000, less for small sets
    shard_bytes: int | None = None  #: a shard ends before its source images exceed this
    shuffle_seed: int | None = None  #: None keeps the order of the JSON
    max_image_pixels: int = 178_956_970  #: Pillow's bound for decompression bombs
    max_video_bytes: int = 1 << 30  #: a sample's media are in memory as one
    control_tokens: tuple[str, ...] = CONTROL_TOKENS  #: that no text may hold, in order

    def __post_init__(self) -> None:
        for name, allowed in (("verify", Verify), ("text_only", TextOnly)):
            if getattr(self, name) not in get_args(allowed):
                raise OptionError(
                    f"{flag(name)} is {getattr(self, name)!r}; "
                    f"expected one of {', '.join(get_args(allowed))}"
                )
        for name in ("shard_size", "shard_bytes", "max_image_pixels", "max_video_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{flag(name)} is {value}; expected at least 1")
        if self.max_video_bytes >= MAX_MEMBER_BYTES:
            raise OptionError(
                f"--max-video-bytes is {self.max_video_bytes}; expected less than "
                f"{MAX_MEMBER_BYTES}, which no file of a tar can reach"
            )
        if self.presize is not None:
            low, high, factor = self.presize
            if not (factor >= 1 and factor * factor <= low <= high):
                raise OptionError(
                    f"--presize is {low}:{high}:{factor}; expected MINPIXELS:MAXPIXELS[:FACTOR] "
                    "with FACTOR² (one visual token, 28² for Qwen2-VL) <= MINPIXELS <= MAXPIXELS"
                )

    def as_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


def flag(name: str) -> str:
    """An option's name as it is typed."""
    return "--" + name.replace("_", "-")


def parse_presize(text: str | None) -> tuple[int, int, int] | None:
    """Read ``MINPIXELS:MAXPIXELS`` or ``MINPIXELS:MAXPIXELS:FACTOR``."""
    if text is None:
        return None
    numbers = text.split(":")
    if len(numbers) not in (2, 3) or not all(number.isdigit() for number in numbers):
        raise OptionError(
            f"--presize is {text!r}; expected MINPIXELS:MAXPIXELS, as in 784:1003520, or with "
            "pixels a token side behind it, as in 3136:1003520:56"
        )
    return int(numbers[0]), int(numbers[1]), int(numbers[2]) if len(numbers) == 3 else FACTOR
