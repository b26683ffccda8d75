"""Caption metrics as coco-caption computes them: BLEU-1 to 4, ROUGE-L, CIDEr-D, and CIDEr.

BLEU, ROUGE-L and CIDEr-D are pycocoevalcap's own Python code, so that figures compare with
published ones; what that package calls "CIDEr" is CIDEr-D. METEOR 1.5 and SPICE are absent: both
exist only as Java programs (METEOR with a table of paraphrases of 60 MB), and nltk's METEOR is the
one of 2005, whose scores differ.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import precook
from pycocoevalcap.rouge.rouge import Rouge

from dct_vl.evaluation.metrics.ptb import tokenize_captions

_MAX_N = 4


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of a set of captions."""

    #: by name; BLEU and ROUGE-L in [0, 1], CIDEr-D and CIDEr in [0, 10]
    total: dict[str, float]
    #: the same an image, in the order given; BLEU is smoothed by 1e-9 and not additive
    each: list[dict[str, float]]


def caption_scores(
    references: Sequence[Sequence[str]], candidates: Sequence[str], *, tokenized: bool = False
) -> CaptionScores:
    """Score one caption an image against its references.

    CIDEr weighs words by how many images mention them: scores of different sets of images do not
    compare, and a single image scores 0.

    Args:
        references: at least one an image.
        candidates: one an image, "" where nothing was said.
        tokenized: the texts are lower-case tokens joined by spaces already.

    Raises:
        ValueError: the lists differ in length, are empty, or an image has no reference.
    """
    if len(references) != len(candidates) or not candidates:
        raise ValueError(
            f"{len(candidates)} captions for {len(references)} images; expected one caption an "
            "image and at least one image"
        )
    if without := [position for position, group in enumerate(references) if not group]:
        raise ValueError(f"images {without[:5]} have no reference caption; leave them out")
    truth, given = _tokenize(references, candidates, tokenized)
    total: dict[str, float] = {}
    each: list[dict[str, float]] = [{} for _ in candidates]
    bleu, bleu_each = Bleu(_MAX_N).compute_score(truth, given, verbose=0)
    columns = [(f"Bleu_{n + 1}", bleu[n], bleu_each[n]) for n in range(_MAX_N)]
    columns.append(("ROUGE_L", *Rouge().compute_score(truth, given)))
    columns.append(("CIDEr-D", *Cider().compute_score(truth, given)))
    plain = cider(list(truth.values()), [group[0] for group in given.values()])
    columns.append(("CIDEr", statistics.fmean(plain), plain))
    for name, value, values in columns:
        total[name] = float(value)
        for scores, one in zip(each, values, strict=True):
            scores[name] = float(one)
    return CaptionScores(total=total, each=each)


def cider(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> list[float]:
    """CIDEr an image in [0, 10], without CIDEr-D's clipping and penalty; texts are tokenized.

    Vedantam et al. 2015, arXiv 1411.5726, equations 1 to 3: the cosine of TF-IDF vectors of
    n-grams, averaged over references and n = 1…4. Words are not stemmed, as in the authors' code.
    """
    truth = [[precook(text, _MAX_N) for text in group] for group in references]
    images_with: Counter[tuple[str, ...]] = Counter()
    for group in truth:
        images_with.update({ngram for counts in group for ngram in counts})
    log_images = math.log(len(truth))
    rarity = {ngram: log_images - math.log(count) for ngram, count in images_with.items()}

    def weigh(counts: dict[tuple[str, ...], int]) -> list[dict[tuple[str, ...], float]]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in range(_MAX_N)]
        for ngram, count in counts.items():
            vectors[len(ngram) - 1][ngram] = count * rarity.get(ngram, log_images)
        return vectors

    scores = []
    for group, text in zip(truth, candidates, strict=True):
        given = weigh(precook(text, _MAX_N))
        cosines = [
            _cosine(one, other)
            for counts in group
            for one, other in zip(given, weigh(counts), strict=True)
        ]
        scores.append(10 * statistics.fmean(cosines))
    return scores


def _cosine(one: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    product = sum(weight * other.get(ngram, 0.0) for ngram, weight in one.items())
    norms = math.hypot(*one.values()) * math.hypot(*other.values())
    return product / norms if norms else 0.0


def _tokenize(
    references: Sequence[Sequence[str]], candidates: Sequence[str], tokenized: bool
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """(references, candidates) by image as pycocoevalcap takes them."""
    flat = [text for group in references for text in group]
    given = list(candidates)
    if not tokenized:
        flat, given = tokenize_captions(flat), tokenize_captions(given)
    texts = iter(flat)
    truth = {position: [next(texts) for _ in group] for position, group in enumerate(references)}
    return truth, {position: [text] for position, text in enumerate(given)}
