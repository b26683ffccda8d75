"""``convert --check``: what a conversion would keep, and how its first samples reach the model."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from data_prep.images import store_image
from data_prep.locate import Locator
from data_prep.media_reader import MediaReader
from data_prep.options import OptionError
from data_prep.plan import PlannedEntry, check_entry
from data_prep.quarantine import Rejected
from data_prep.run import Job
from data_prep.schema import ROLES
from data_prep.sources import describe, read_entries
from data_prep.tar_index import TarIndex

if TYPE_CHECKING:
    from data_prep.videos import StoredVideo
    from dct_tokenizer import VisualTokenizer

#: Samples that are shown, and entries that may be tried for them where their images are broken.
NUM_SHOWN, _MOST_TRIED = 3, 20


def check(
    job: Job, *, tokenizers: Sequence["VisualTokenizer"], model: Path | None
) -> Iterator[str]:
    """Lines of a dry run, which writes nothing beside a temporary folder.

    Args:
        job: the conversion.
        tokenizers: visual tokens are counted by their plans, within their pixel bounds.
        model: folder with a ``tokenizer.json``, by which tokens of text are counted.

    Raises:
        SourceError: the source cannot be read.
        OptionError: the model's tokenizer cannot be read.
    """
    source = job.open_source()
    yield f"format: {source.format} ({source.name})"
    yield from describe(source)
    text_tokenizer = None if model is None else _read_tokenizer(model)
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    tried: list[PlannedEntry] = []
    num_kept = num_entries = 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        index = stack.enter_context(TarIndex(folder / "index"))
        index.update(list(source.tars))
        yield from index.faults()
        locator = Locator(job.data_dir, list(source.tars), index)
        kept_spool = stack.enter_context((folder / "media.bin").open("wb"))
        no_spool = stack.enter_context(Path(os.devnull).open("wb"))
        for entry in read_entries(source, locator):
            num_entries += 1
            spool = kept_spool if len(tried) < _MOST_TRIED else no_spool
            try:
                planned, _ = check_entry(entry, locator, spool, job.options)
            except Rejected as rejection:
                rejected[rejection.reason.value] += 1
                where = f"entry {entry.index}" + (f", line {entry.line}" if entry.line else "")
                examples.setdefault(rejection.reason.value, f"{where}: {rejection.detail}")
                continue
            num_kept += 1
            if spool is kept_spool:
                tried.append(planned)
        kept_spool.flush()
        yield (
            f"{num_kept:,} of {num_entries:,} entries would be kept, as far as can be told without "
            "decoding their images"
        )
        for reason, count in rejected.most_common():
            yield f"rejected, {reason}: {count:,} ({examples[reason]})"
        reader = MediaReader(job.data_dir, folder / "index", folder / "media.bin")
        stack.callback(reader.close)
        num_shown = 0
        for planned in tried:
            lines = list(_sample(planned, reader, job, tokenizers, text_tokenizer))
            yield from lines
            num_shown += not lines[-1].startswith("  rejected")
            if num_shown == NUM_SHOWN:
                break


def _sample(
    planned: PlannedEntry,
    reader: MediaReader,
    job: Job,
    tokenizers: Sequence["VisualTokenizer"],
    text_tokenizer: Any,
) -> Iterator[str]:
    entry = planned.entry
    yield f"entry {planned.index}, id {entry.get('id')!r}:"
    for turn in entry["conversations"]:
        said = turn["value"].replace("\n", "\n    ")
        yield f"  {ROLES[turn['from']]}: {said}"
    for path, location in zip(planned.paths, planned.images, strict=True):
        try:
            stored = store_image(reader.read(location), job.options)
        except Rejected as rejection:
            yield f"  rejected, {rejection}"
            return
        counts = ", ".join(
            f"{_count(tokenizer, stored.height, stored.width)} visual tokens ({tokenizer.name})"
            for tokenizer in tokenizers
        )
        how = ", ".join(stored.conversions) or "as it is"
        yield f"  image {path}: {stored.width}x{stored.height}, {how}; {counts}"
    for path, location in zip(planned.video_paths, planned.videos, strict=True):
        try:
            video = _probe(reader.read(location), job)
        except Rejected as rejection:
            yield f"  rejected, {rejection}"
            return
        yield f"  video {path}: {video.width}x{video.height}, {location.size:,} bytes, as it is"
    if text_tokenizer is not None:
        texts = [turn["value"] for turn in entry["conversations"]]
        count = sum(len(text_tokenizer.encode(_unmarked(text)).ids) for text in texts)
        yield f"  text: {count:,} tokens, without those of the chat template"


def _probe(data: bytes, job: Job) -> "StoredVideo":
    # PyAV takes an eighth of a second to import, which sets of images do without
    from data_prep.videos import store_video

    return store_video(data, job.options)


def _count(tokenizer: "VisualTokenizer", height: int, width: int) -> str:
    from dct_tokenizer.plan import PlanError

    if not tokenizer.counts_from_header:
        return "an unknown number before decoding of"
    try:
        return f"{tokenizer.plan(height, width).num_llm_tokens:,}"
    except PlanError as error:
        return f"no ({error})"


def _unmarked(text: str) -> str:
    return text.replace("<image>", "").replace("<video>", "").strip("\n")


def _read_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # of its library: a bare Exception
        raise OptionError(
            f"--tokenizer-path {folder} has no tokenizer.json that can be read ({error}); "
            "expected a folder of a Hugging Face model"
        ) from error
