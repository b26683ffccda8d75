"""Checkpoints on the device: gone on from exactly, and with the other layer spec."""

from __future__ import annotations

import pytest

#: two kernels' bf16 roundings of the same weights and samples
BF16 = 2e-2
#: Backward kernels of attention may add up in any order where a segment is longer than their tile
#: of 128 keys; a last bit of a bf16 gradient that falls otherwise moves a loss by about this.
SAME_KERNELS = 1e-4
#: what a lost part of the state has to cost at least, so that the tests can see it
SEEN = 3 * BF16


@pytest.fixture(scope="module")
def need_te(need_spec) -> None:
    need_spec("te")


def later(figures: dict[int, float]) -> list[float]:
    """Of the steps behind the checkpoint."""
    return [figures[step] for step in (3, 4)]


def test_a_lost_state_would_be_seen(runs):
    """A run that forgot its weights has the losses of the same samples at next to no rate; one that
    started anew those of the first steps' samples.
    """
    straight, frozen = runs.figures("local").losses, runs.figures("frozen").losses
    assert sorted(straight) == sorted(frozen) == [1, 2, 3, 4]
    assert straight[1] == pytest.approx(frozen[1], rel=SAME_KERNELS)
    for step, loss in zip((3, 4), later(straight), strict=True):
        assert frozen[step] != pytest.approx(loss, rel=SEEN)
        assert straight[1] != pytest.approx(loss, rel=SEEN)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(runs):
    straight, resumed = runs.figures("local"), runs.figures("local_again")
    assert sorted(resumed.losses) == [3, 4]
    assert later(resumed.losses) == pytest.approx(later(straight.losses), rel=SAME_KERNELS)
    assert later(resumed.norms) == pytest.approx(later(straight.norms), rel=1e2 * SAME_KERNELS)


def test_both_specs_train_alike(runs, need_te):
    local, te = runs.figures("local").losses, runs.figures("te").losses
    assert te == pytest.approx(local, rel=BF16)


@pytest.mark.parametrize(("first", "second"), [("local", "te"), ("te", "local")])
def test_a_checkpoint_goes_on_with_the_other_spec(runs, need_te, first, second):
    straight, resumed = runs.figures(first), runs.figures(f"{first}_{second}")
    assert sorted(resumed.losses) == [1, 2, 3, 4]
    assert later(resumed.losses) == pytest.approx(later(straight.losses), rel=BF16)


def test_the_first_step_behind_a_checkpoint_keeps_the_weights(runs, need_te):
    """Step 3 is computed from the very weights, and differs by the kernels' rounding only."""
    for first, second in (("local", "te"), ("te", "local")):
        straight, resumed = runs.figures(first), runs.figures(f"{first}_{second}")
        assert resumed.losses[3] == pytest.approx(straight.losses[3], rel=BF16 / 2)
