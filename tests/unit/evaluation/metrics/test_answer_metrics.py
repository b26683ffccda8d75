"""Metrics of short answers against published figures; each example names where it was published."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dct_vl.evaluation.metrics.answers import (
    anls,
    exact_match,
    normalize_answer,
    normalize_textvqa,
    parse_price,
    relaxed_match,
    smape,
    vqa_accuracy,
)
from dct_vl.evaluation.metrics.choice import extract_choice, parse_options, pope_scores, says_yes

#: github.com/google-research/pix2struct: pix2struct/metrics_test.py
PIX2STRUCT_GIVEN = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
PIX2STRUCT_TRUE = ["abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't"]


@pytest.mark.parametrize(
    ("metric", "published"),
    [
        (lambda given, true: exact_match(given, true, ignore_case=False), 12.5),
        (anls, 47.5),
        (relaxed_match, 62.5),
    ],
)
def test_pix2structs_metrics_test(metric, published):
    pairs = zip(PIX2STRUCT_GIVEN, PIX2STRUCT_TRUE, strict=True)
    mean = statistics.fmean(metric(given, [true]) for given, true in pairs)
    assert 100 * mean == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "published"),
    [("The Coca", 0.0), ("CocaCola", 8 / 9), ("Coca cola", 1.0), ("Cola", 0.0), ("Cat", 0.0)],
)
def test_anls_of_the_coca_cola_example(answer, published):
    """The challenge's example, as in github.com/shunk031/ANLS tests/metrics/score_test.py.

    8/9 is printed as 0.89 there.
    """
    assert anls(answer, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(published, abs=1e-9)


def test_anls_counts_a_half_and_not_less():
    assert anls("ab", ["abcd"]) == 0.5
    assert anls("ab", ["abcde"]) == 0.0
    assert anls("", ["abc"]) == 0.0
    assert anls("  Two   words ", ["two words"]) == 1.0


@pytest.mark.parametrize(
    ("answer", "truth", "is_right"),
    [
        # ChartQA's paper, section 5.1: within 5 % for numbers, exact for text
        ("105", "100", True),
        ("105.1", "100", False),
        ("-95", "-100", True),
        ("14%", "0.14", True),
        ("yes", "Yes", True),
        ("2010 ", "2011", True),
        ("1,000", "1000", False),
        ("0", "0", True),
        ("0.0", "0", False),
        ("none", "5", False),
    ],
)
def test_relaxed_accuracy(answer, truth, is_right):
    assert relaxed_match(answer, [truth]) == is_right


def test_any_true_answer_will_do():
    assert relaxed_match("7", ["100", "7.2"]) == 1.0
    assert exact_match(" Paris", ["London", "paris"]) == 1.0


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_vqa_accuracy_of_agreeing_annotators(agree, accuracy):
    """visualqa.org/evaluation: averaged over all ten sets of nine annotators."""
    said = ["red"] * agree + [f"other {place}" for place in range(10 - agree)]
    assert vqa_accuracy("Red.", said) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        # what vqaEval.py of github.com/GT-Vision-Lab/VQA makes of them
        ("The Dog", "dog"),
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("somebody'd", "somebodyd"),
        ("red, white", "red white"),
        ("red/white", "red white"),
        ("10,000", "10000"),
        ("3.5", "3.5"),
        ("a.m.", "am"),
        ("man's", "man's"),
        (" yes\n", "yes"),
    ],
)
def test_vqa_normalisation(answer, normal):
    assert normalize_answer(answer) == normal


@pytest.mark.parametrize("number", [0, 1, 3])
def test_vqa_accuracy_of_too_few_annotators_is_an_error(number):
    """One answer, as rows without annotators have it, would score 0 when it is given."""
    with pytest.raises(ValueError, match=f"a question has {number}"):
        vqa_accuracy("red", ["red"] * number)


def test_textvqa_sets_the_genitive_apart():
    assert normalize_textvqa("Lay's?") == "lay 's"
    assert normalize_textvqa("1,000 The") == "1000"
    assert vqa_accuracy("lay's", ["Lay's"] * 10, textvqa=True) == 1.0


@settings(deadline=None)
@given(st.text(alphabet="abcdefghij XYZ.,'?!-/0123456789"))
def test_case_and_outer_space_never_matter_to_vqa(text):
    assert normalize_answer(f"  {text.upper()} ") == normalize_answer(text.lower())


def test_smape():
    """The price task's formula: 100 against 120 is 18.18 %."""
    assert smape(100, 120) == pytest.approx(18.18, abs=0.005)
    assert smape(0, 0) == 0.0
    assert smape(0, 5) == smape(5, 0) == 200.0


@settings(deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_smape_is_symmetric_and_bounded(one, other):
    assert smape(one, other) == pytest.approx(smape(other, one))
    assert 0 <= smape(one, other) <= 200.0 + 1e-9


@pytest.mark.parametrize(
    ("text", "price"),
    [
        ("199.99", 199.99),
        ("$1,299.00", 1299.0),
        ("about 5 dollars", 5.0),
        (".5", 0.5),
        ("$.5", 0.5),
        ("Rs.1299", 1299.0),
        ("₹1,29,999.50", 129999.5),
        ("₹12,34,56,789", 123456789.0),
        ("12 or 1,30", 12.0),
        ("?", None),
        ("9" * 400, None),
    ],
)
def test_prices_are_read(text, price):
    assert parse_price(text) == price


def test_smape_of_a_price_near_the_end_of_floats_is_a_number():
    assert smape(5.0, 9e307) == pytest.approx(200.0)


OPTIONS = ("a cat", "the dog", "two")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("(b)", "B"),
        ("C.", "C"),
        ("A) cat", "A"),
        ("B: because", "B"),
        ("B\nThe dog is there.", "B"),
        ("The answer is C", "C"),
        ("Answer: (B), since A is wrong", "B"),
        ("option c", "C"),
        ("The answer is the dog.", "B"),
        ("The answer is a dog.", None),
        ("The correct answer is: a pair, two of them", "C"),
        ("The answer is a because it purrs", "A"),
        ("The answer is A which purrs", "A"),
        ("option a shows it", "A"),
        ("The dog.", "B"),
        ("I see two of them", "C"),
        ("I think it is (C)", "C"),
        ("C is right", "C"),
        ("**B**", "B"),
        ("A dog is there", None),
        ("A or B", None),
        ("A is right", "A"),
        ("none of these", None),
        ("", None),
        ("D", None),
    ],
)
def test_the_chosen_letter(answer, letter):
    assert extract_choice(answer, OPTIONS) == letter


def test_letters_without_known_options():
    assert extract_choice("D.") == "D"
    assert extract_choice("E.") is None
    assert extract_choice("E.", num_options=5) == "E"


def test_options_of_one_line():
    assert parse_options("(a) Open (b) Closed") == ("Open", "Closed")
    assert parse_options("(a) Yes, it is (b) No") == ("Yes, it is", "No")


def test_pope():
    """The five figures, worked out by hand for 3 hits, 1 false alarm, 1 miss, 3 rejections."""
    said = [True, True, True, True, False, False, False, False]
    true = [True, True, True, False, True, False, False, False]
    assert pope_scores(said, true) == pytest.approx(
        {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75, "yes_ratio": 0.5}
    )
    never = pope_scores([False, False], [True, False])
    assert (never["precision"], never["recall"], never["f1"]) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="1 answers for 0 questions"):
        pope_scores([True], [])


@pytest.mark.parametrize(
    ("answer", "is_yes"),
    [("Yes", True), ("No, there is not", False), ("There is a cat. No dog", True), ("no", False)],
)
def test_pope_reads_the_first_sentence(answer, is_yes):
    assert says_yes(answer) is is_yes
