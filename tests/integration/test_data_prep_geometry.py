"""The sizes and token counts that `data_prep` computes by itself are those of the tokenizers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.smart_resize import smart_resize
from data_prep.token_count import TOKEN_SIDES, count_tokens
from dct_tokenizer import build_tokenizer
from dct_tokenizer.geometry import smart_resize as tokenizer_resize

_SIDES = st.integers(28, 3000)
_BOUNDS = st.sampled_from([(3136, 43_904), (3136, 1_003_520), (50_176, 200_704)])


@given(_SIDES, _SIDES, st.sampled_from([28, 42, 56]), _BOUNDS)
def test_resizing_is_the_tokenizers(height, width, factor, bounds):
    if max(height, width) > 200 * min(height, width):
        return
    arguments = {"factor": factor, "min_pixels": bounds[0], "max_pixels": bounds[1]}
    assert smart_resize(height, width, **arguments) == tokenizer_resize(height, width, **arguments)


@pytest.mark.parametrize("name", TOKEN_SIDES)
@pytest.mark.parametrize("size", [(480, 640), (56, 56), (700, 90), (1200, 1600)])
def test_token_counts_are_the_plans(name, size):
    low, high = 3136, 1_003_520
    plan = build_tokenizer(name, min_pixels=low, max_pixels=high).plan(*size)
    counted = count_tokens(*size, side=TOKEN_SIDES[name], min_pixels=low, max_pixels=high)
    assert counted == plan.num_llm_tokens
