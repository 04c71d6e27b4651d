"""Initial weights: a saved file loads into another model, and other files are refused."""

import dataclasses

import pytest
import torch
from small_network import SMALL

from stlm_edge.errors import UsageError
from stlm_edge.model import STLM, ModelConfig
from stlm_edge.teachers import sam
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.training import initial_weights


@pytest.fixture(scope="module")
def teacher():
    return EfficientNetLite0()


def test_saved_weights_load_into_another_model(teacher, tmp_path):
    torch.manual_seed(0)
    first, second = STLM(SMALL).eval(), STLM(SMALL).eval()
    path = tmp_path / "initial_weights.safetensors"
    initial_weights.save(path, first, teacher, {"seed": 4})
    assert initial_weights.load(path, second, teacher)["seed"] == 4
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(first.plain(x), second.plain(x), atol=1e-2)
        assert not torch.allclose(first.denoising(x), second.denoising(x), atol=1e-2)


def test_weights_of_another_network_are_refused(teacher, tmp_path):
    initial_weights.save(tmp_path / "initial_weights.safetensors", STLM(SMALL), teacher, {})
    deeper = STLM(dataclasses.replace(SMALL, depths=(1, 1, 2, 1)))
    with pytest.raises(UsageError, match="missing or of another shape"):
        initial_weights.load(tmp_path / "initial_weights.safetensors", deeper, teacher)


def test_other_file_is_refused(teacher, tmp_path):
    (tmp_path / "initial_weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(UsageError, match=r"initial_weights\.safetensors: not intact.*install"):
        initial_weights.load(tmp_path / "initial_weights.safetensors", STLM(SMALL), teacher)


def test_shipped_weights_fit_the_network_and_are_small(teacher):
    card = initial_weights.load(initial_weights.SHIPPED, STLM(ModelConfig(224)), teacher)
    assert initial_weights.SHIPPED.stat().st_size <= 20_000_000
    assert card["teacher_sha256"] == teacher.digest
    assert {"sources", "seed", "date", "curve"} <= card.keys()


def test_weights_of_another_teacher_are_refused_where_frozen(tmp_path):
    torch.manual_seed(0)
    other = sam.Sam("vit_t", STLM(SMALL).plain, digest="0" * 64, config=SMALL)
    initial_weights.save(tmp_path / "initial_weights.safetensors", STLM(SMALL), EfficientNetLite0(), {})
    model = STLM(SMALL)
    initial_weights.load(tmp_path / "initial_weights.safetensors", model, other)
    with pytest.raises(UsageError, match=r"distilled from EfficientNet-Lite0 .* the teacher is vit_t; .*--init"):
        initial_weights.load(tmp_path / "initial_weights.safetensors", model, other, frozen=True)


def test_mobile_sam_weights_are_copied(teacher):
    torch.manual_seed(0)
    published, model = sam.Sam("vit_t", STLM(SMALL).plain, digest="0" * 64, config=SMALL), STLM(SMALL)
    initial_weights.copy_mobile_sam(published, model)
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        embedding = model.eval().plain(model.normalise(image))
        torch.testing.assert_close(embedding, published.image_encoder(model.normalise(image)))
        state = published.mask_decoder.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.mask_decoder.state_dict().items())
    with pytest.raises(UsageError, match="only vit_t has the student's shape"):
        initial_weights.copy_mobile_sam(teacher, model)
