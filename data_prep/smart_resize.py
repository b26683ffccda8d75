"""The size at which Qwen2-VL's image processor shows an image to the model.

`dct_tokenizer.geometry` has the same rule; a test holds them equal. It is not imported here since
torch would come along into every process that prepares shards.
"""

import math

#: Pixels a visual token covers on each side: patches of 14, merged 2 by 2.
FACTOR = 28
MAX_ASPECT = 200


def smart_resize(
    height: int, width: int, *, min_pixels: int, max_pixels: int, factor: int = FACTOR
) -> tuple[int, int]:
    """Height and width in pixels, multiples of ``factor``, about the aspect ratio kept.

    The formula of ``transformers.models.qwen2_vl.image_processing_qwen2_vl.smart_resize``, save
    that a side never falls to 0 for long and narrow images: it stays at ``factor``, and the other
    side gives way where that would exceed ``max_pixels``.
    """
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
        longest = max(factor, max_pixels // (factor * factor) * factor)
        if new_height == factor:
            new_width = min(new_width, longest)
        elif new_width == factor:
            new_height = min(new_height, longest)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width
