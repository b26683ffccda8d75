"""What the progress line and the loggers get of a step."""

from __future__ import annotations

from dct_vl.training.watch.step_log import CURVES, curves, progress, token_rates

ENTRY = {
    "loss": 1.23456,
    "samples_per_second": 51.23,
    "text_tokens_per_second": 800.0,
    "visual_tokens_per_second": 12700.0,
    "padding_tokens_per_second": 500.0,
    "tflops": 450.2,
    "mfu": 0.4551,
    "seconds": 0.31,
    "data_wait_share": 0.012,
    "peak_memory_gib": 45.61,
}


def test_tokens_are_counted_apart():
    totals = {"num_text_tokens": 100, "num_visual_tokens": 300, "num_padding_tokens": 50}
    rates = token_rates(totals, 0.5)
    assert rates == {
        "text_tokens_per_second": 200.0,
        "visual_tokens_per_second": 600.0,
        "padding_tokens_per_second": 100.0,
    }


def test_loggers_get_what_is_known():
    assert set(curves(ENTRY)) == set(CURVES.values())
    unknown = curves({**ENTRY, "mfu": None})
    assert set(CURVES.values()) - set(unknown) == {"device/mfu"}


def test_the_progress_line_is_short():
    assert progress(ENTRY) == {
        "loss": "1.235",
        "samples/s": "51.2",
        "tokens/s": "13.5k",
        "mfu": "46%",
        "wait": "1%",
        "mem": "45.6G",
    }
    slow = {**ENTRY, "mfu": None, "visual_tokens_per_second": 44.0}
    assert progress(slow)["tokens/s"] == "844"
    assert "mfu" not in progress(slow)
