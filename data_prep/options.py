"""The options that decide what is in the shards; speed and progress are not among them."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

Verify = Literal["structure", "decode", "none"]
TextOnly = Literal["drop", "keep"]

DEFAULT_SHARD_SIZE = 10_000
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
    presize: tuple[int, int] | None = None  #: pixel bounds for Qwen's smart_resize
    shard_size: int | None = None  #: samples; None: 10,000, less for small sets
    shard_bytes: int | None = None  #: a shard ends before its source images exceed this
    shuffle_seed: int | None = None  #: None keeps the order of the JSON
    max_image_pixels: int = 178_956_970  #: Pillow's bound for decompression bombs

    def __post_init__(self) -> None:
        for name, allowed in (("verify", Verify), ("text_only", TextOnly)):
            if getattr(self, name) not in get_args(allowed):
                raise OptionError(
                    f"{flag(name)} is {getattr(self, name)!r}; "
                    f"expected one of {', '.join(get_args(allowed))}"
                )
        for name in ("shard_size", "shard_bytes", "max_image_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{flag(name)} is {value}; expected at least 1")
        if self.presize is not None and not 784 <= self.presize[0] <= self.presize[1]:
            raise OptionError(
                f"--presize is {self.presize[0]}:{self.presize[1]}; expected MINPIXELS:MAXPIXELS "
                "with 784 (one visual token) <= MINPIXELS <= MAXPIXELS"
            )

    def as_json(self) -> dict[str, Any]:
        """The options as they stand in the manifest."""
        return dataclasses.asdict(self) | {"presize": list(self.presize) if self.presize else None}


def flag(name: str) -> str:
    """An option's name as it is typed."""
    return "--" + name.replace("_", "-")


def parse_presize(text: str | None) -> tuple[int, int] | None:
    """Read ``MINPIXELS:MAXPIXELS``."""
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit()):
        raise OptionError(f"--presize is {text!r}; expected MINPIXELS:MAXPIXELS, as in 784:1003520")
    return int(low), int(high)
