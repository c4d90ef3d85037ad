"""The id space, with LWM's numbers as the example."""

import dataclasses

import numpy as np
import pytest
from worldloom.tokenizers.vocabulary import CODES, Vocabulary

TEXT = Vocabulary(32000, 1, 2, "digest")
LWM = Vocabulary(32000, 1, 2, "digest", CODES, "pictures")


def test_text_alone() -> None:
    assert (TEXT.size, TEXT.vision_size) == (32000, 0)
    assert TEXT.dtype == np.uint16
    assert not TEXT.is_vision(np.arange(32000)).any()


def test_pictures_follow_text() -> None:
    # LWM numbers vision from 0: 8192 codes, then eof 8192 and eov 8193 (lwm/vision_chat.py); text is below ours.
    assert (LWM.eof - LWM.text_size, LWM.eov - LWM.text_size) == (8192, 8193)
    assert (LWM.size, LWM.vision_size) == (32000 + 8194, 8194)
    assert LWM.eov == LWM.size - 1
    assert LWM.dtype == np.uint16


def test_vision_is_told_by_the_id() -> None:
    tokens = np.array([[0, 31999], [32000, LWM.eof]], np.uint16)
    assert LWM.is_vision(tokens).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(("size", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_the_type_is_the_smallest_that_holds_every_id(size: int, dtype: type) -> None:
    vocabulary = Vocabulary(size, 1, 2, "")
    assert vocabulary.dtype == dtype
    assert np.array([size - 1]).astype(vocabulary.dtype)[0] == size - 1


@pytest.mark.parametrize(("bos", "eos"), [(-1, 2), (1, -1), (32000, 2), (1, 32000)])
def test_bos_and_eos_must_be_text(bos: int, eos: int) -> None:
    with pytest.raises(ValueError, match="must be text ids below 32000"):
        Vocabulary(32000, bos, eos, "")


def test_every_field_is_in_the_fingerprint() -> None:
    others = {"text_size": 32001, "bos": 3, "eos": 4, "text_digest": "x", "codes": 8191, "vision_digest": "x"}
    assert set(others) == {field.name for field in dataclasses.fields(Vocabulary)}
    prints = {dataclasses.replace(LWM, **{name: value}).fingerprint for name, value in others.items()}
    assert len(prints | {LWM.fingerprint}) == len(others) + 1
    assert LWM.fingerprint == dataclasses.replace(LWM).fingerprint


def test_the_fingerprint_is_fixed() -> None:
    """Shards written today must be readable tomorrow: change this number only with the format's version."""
    assert LWM.fingerprint == "47467d56fcb1f2864000208f157aadf5"


def test_a_vocabulary_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LWM.bos = 5
