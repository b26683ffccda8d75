"""What becomes of the parts of a sample."""

import json
import pickle

import pytest

from data_prep.schema import SchemaError
from dct_vl.inputs.samples import cook_chat, read_record

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
JPEG = b"\xff\xd8\xff\xe0"


def cooked(record=None, **parts):
    record = {"conversations": TURNS} | (record or {})
    keys = {"__key__": "k", "__restore_key__": (), "__subflavors__": {}}
    return cook_chat({**keys, "json": json.dumps(record).encode(), **parts})


@pytest.mark.parametrize(
    ("part", "data"), [("img_0.jpg", JPEG), ("jpgs", pickle.dumps([JPEG])), ("image", JPEG)]
)
def test_an_image_under_an_unknown_name_is_refused_by_name(part, data):
    with pytest.raises(SchemaError, match=f"part {part} is of a name that is not known; known are"):
        read_record(cooked(**{part: data}))


def test_text_beside_the_media_is_no_loss():
    sample = cooked(jpg=JPEG, txt="A café.".encode(), cls=b"7")
    assert (sample.images, sample.fault) == ((JPEG,), "")
    assert read_record(sample).turns


def test_an_image_that_the_json_names_and_the_sample_lacks():
    with pytest.raises(SchemaError, match="the JSON names 1 images, the sample holds 0: a part"):
        read_record(cooked({"image": "a.jpg"}))
