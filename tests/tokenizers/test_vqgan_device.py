"""The device that a VQGAN's codes are made on is said, not found: submitter and workers agree where they differ."""

from pathlib import Path

import numpy as np
import pytest
from worldloom.errors import UserError

torch = pytest.importorskip("torch", reason="SKIPPED FOR LACK OF TORCH: pip install 'worldloom[vision]'")
pytest.importorskip("diffusers", reason="SKIPPED FOR LACK OF DIFFUSERS: pip install 'worldloom[vision]'")

from worldloom.tests.tokenizers.test_vqgan import random_model, write  # noqa: E402
from worldloom.tokenizers import vision  # noqa: E402
from worldloom.tokenizers.vqgan import VQGAN  # noqa: E402

PICTURE = np.zeros((1, 256, 256, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(random_model(), tmp_path_factory.mktemp("vqgan") / "vqvae", "-1..1")


def test_a_machine_without_the_device_knows_its_digest_and_decodes(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    here, elsewhere = VQGAN.load(folder), VQGAN.load(folder, None, "cuda")
    assert (here.device, elsewhere.device) == ("cpu", "cuda")
    assert here.digest != elsewhere.digest and here.codes == elsewhere.codes
    codes = here.encode(PICTURE)
    assert np.array_equal(elsewhere.decode(codes), here.decode(codes))
    with pytest.raises(UserError, match=r"made on cuda, which this machine lacks: .* or set vocabulary.vision.device"):
        elsewhere.encode(PICTURE)


def test_a_gpu_that_there_is_is_left_where_the_cpu_is_asked_for(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = VQGAN.load(folder, None, "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked = VQGAN.load(folder, None, "cpu")
    assert (asked.device, asked.digest) == ("cpu", usual.digest)
    assert np.array_equal(asked.encode(PICTURE), usual.encode(PICTURE))


def test_a_codebook_has_no_device(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="A codebook makes the same codes anywhere"):
        vision.load("codebook", str(tmp_path / "c.npz"), None, "cuda")
