"""How many visual tokens images cost under each visual tokenizer, from their sizes alone."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from data_prep.options import OptionError
from data_prep.smart_resize import smart_resize

if TYPE_CHECKING:
    from dct_tokenizer import VisualTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """The visual tokens of images under one tokenizer."""

    tokenizer: str
    from_sizes: bool  #: False where the number is known after decoding only; nothing is counted
    images: Counter[int] = field(default_factory=Counter)  #: images by number of visual tokens
    refused: int = 0  #: images whose size the tokenizer cannot cut within these pixel bounds


def find_tokenizers(names: Sequence[str]) -> list["VisualTokenizer"]:
    """The tokenizers of presets' names or YAML files; every preset where there are no names.

    Raises:
        OptionError: an unknown name, or a file that makes no tokenizer.
    """
    # torch comes along: seconds and 200 MB that the processes which prepare shards do without
    from dct_tokenizer import TokenizerConfigError, build_tokenizer, list_presets

    try:
        return [build_tokenizer(name) for name in names or list_presets()]
    except TokenizerConfigError as error:
        raise OptionError(f"--tokenizer: {error}") from error


def count_tokens(
    sizes: Counter[tuple[int, int]],
    tokenizers: Iterable["VisualTokenizer"],
    *,
    min_pixels: int,
    max_pixels: int,
) -> Iterator[TokenCounts]:
    """Visual tokens of still images by (height, width), one tokenizer after the other.

    Takes about 10 µs a distinct size and tokenizer. The pixel bounds are those of a resized image;
    they replace the tokenizers' own.
    """
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    # images that are resized alike stand in a row: the arrays of a plan are cached by grid, and
    # making them anew each time would take 20 times as long as the rest
    ordered = sorted(sizes, key=lambda size: smart_resize(*size, **bounds))
    for tokenizer in tokenizers:
        if tokenizer.counts_from_header:
            yield _count(tokenizer.within(**bounds), ordered, sizes)
        else:
            yield TokenCounts(tokenizer=tokenizer.name, from_sizes=False)


def _count(
    tokenizer: "VisualTokenizer",
    ordered: list[tuple[int, int]],
    sizes: Counter[tuple[int, int]],
) -> TokenCounts:
    from dct_tokenizer import PlanError

    images: Counter[int] = Counter()
    refused = 0
    for size in ordered:
        try:
            images[tokenizer.plan(*size).num_llm_tokens] += sizes[size]
        except PlanError:
            refused += sizes[size]
    return TokenCounts(tokenizer=tokenizer.name, from_sizes=True, images=images, refused=refused)
