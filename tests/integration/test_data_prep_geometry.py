"""The sizes that `data_prep` computes by itself are those of the tokenizers."""

from hypothesis import given
from hypothesis import strategies as st

from data_prep.smart_resize import smart_resize
from dct_tokenizer.geometry import smart_resize as tokenizer_resize

_SIDES = st.integers(28, 3000)
_BOUNDS = st.sampled_from([(3136, 43_904), (3136, 1_003_520), (50_176, 200_704)])


@given(_SIDES, _SIDES, st.sampled_from([28, 42, 56]), _BOUNDS)
def test_resizing_is_the_tokenizers(height, width, factor, bounds):
    if max(height, width) > 200 * min(height, width):
        return
    arguments = {"factor": factor, "min_pixels": bounds[0], "max_pixels": bounds[1]}
    assert smart_resize(height, width, **arguments) == tokenizer_resize(height, width, **arguments)
