"""SAM as the teacher: its two maps are those of the package, and files other than the published ones are refused."""

import copy
import json
import os
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from published import REFERENCE, assert_published_maps, fill, published_image
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as PackageSam

from stlm_edge.errors import UsageError
from stlm_edge.files import sha256_of
from stlm_edge.teachers import TEACHERS, open_teacher, sam
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.weights import PUBLISHED, Weights

SMALL = 128


def small_package_sam():
    grid = SMALL // 16
    encoder = ImageEncoderViT(
        img_size=SMALL,
        embed_dim=32,
        depth=2,
        num_heads=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
    prompts = PromptEncoder(256, (grid, grid), (SMALL, SMALL), mask_in_chans=16)
    decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
    return PackageSam(encoder, prompts, decoder).eval()


def filled(module):
    module.load_state_dict({n: torch.from_numpy(fill(n, tuple(t.shape))) for n, t in module.state_dict().items()})
    return module


def what_the_package_says(package, image):
    """S×S×3 uint8 through all of the package, no prompts; its encoder's output and its transformer's image tokens."""
    seen = {}
    package.image_encoder.register_forward_hook(lambda _, __, output: seen.update(embedding=output))
    package.mask_decoder.transformer.register_forward_hook(lambda _, __, output: seen.update(tokens=output[1]))
    record = {"image": image.permute(2, 0, 1).float(), "original_size": image.shape[:2]}
    package([record], multimask_output=True)
    return seen["embedding"], seen["tokens"].transpose(1, 2).reshape(seen["embedding"].shape)


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def package():
    return filled(small_package_sam())


@pytest.fixture(scope="module")
def teacher(package):
    teacher = sam.Sam("vit_b", small_package_sam().image_encoder, "0" * 64, native_size=SMALL)
    teacher.fill(package.state_dict())
    return teacher


def noise(size, count=1):
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_the_maps_are_those_of_the_package(package, teacher):
    """In float64, where no kernel's rounding hides a difference of formula; the maps themselves are float32."""
    image = noise(SMALL, 2)
    exact, exact_package = copy.deepcopy(teacher).double(), copy.deepcopy(package).double()
    for each in (exact, exact_package):
        each.prompt_encoder.pe_layer.float()  # the package computes it in float32
    maps = exact(image)
    for index in range(2):
        expected = what_the_package_says(exact_package, image[index])
        assert worst([m[index : index + 1] for m in maps], expected) <= 2e-6


@pytest.mark.slow
def test_vit_b_gives_the_maps_of_the_package(tmp_path):
    package = filled(sam_model_registry["vit_b"]())
    path = tmp_path / "vit_b.pth"
    torch.save(package.state_dict(), path)
    image, _ = published_image()
    embedding, tokens = sam.open_sam("vit_b", path, weights_of(path))(image)
    expected_embedding, expected_tokens = what_the_package_says(package, image[0])
    assert (embedding - expected_embedding).abs().max() <= 1e-4
    assert (tokens - expected_tokens).abs().median() <= 1e-4
    assert (tokens - expected_tokens).abs().max() <= 2e-2


def test_other_sizes_run_at_native_size_and_are_averaged(teacher):
    image = noise(SMALL // 2)
    native = F.interpolate(image.permute(0, 3, 1, 2).float(), (SMALL, SMALL), mode="bilinear", antialias=True)
    normal = (native - teacher.pixel_mean) / teacher.pixel_std
    embedding = teacher.image_encoder(normal)
    found, tokens = teacher(image)
    assert found.shape == tokens.shape == (1, 256, 4, 4)
    assert torch.allclose(found[0, :, 1, 2], embedding[0, :, 2:4, 4:6].mean((1, 2)), atol=1e-5)


def test_teacher_is_frozen_and_in_float32(teacher):
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(m.dtype == torch.float32 and not m.requires_grad for m in teacher(noise(SMALL)))


@pytest.fixture(scope="module")
def mobile_sam():
    """Tensors under MobileSAM's names, with values that published numbers are known for."""
    shapes = json.loads((REFERENCE / "tensors.json").read_text())
    wanted = {name: shape for name, shape in shapes.items() if not name.startswith(("denoising.", "fa."))}
    return {n.replace("plain.", "image_encoder."): torch.from_numpy(fill(n, s)) for n, s in wanted.items()}


@pytest.fixture(scope="module")
def mobile_sam_file(mobile_sam, tmp_path_factory):
    unused = {"image_encoder.norm_head.weight": torch.ones(320), "mask_decoder.iou_prediction_head.x": torch.ones(3)}
    path = tmp_path_factory.mktemp("weights") / "mobile_sam.pt"
    torch.save(mobile_sam | unused, path)
    return path


def weights_of(path):
    """Return a row that declares any file the published one."""
    return Weights("vit_t", "https://example.org/" + path.name, path.stat().st_size, sha256_of(path))


def test_mobile_sam_parameter_names_are_ours(mobile_sam):
    ours = sam.Sam("vit_t", sam.make_encoder("vit_t"), "").state_dict()
    shapes = {name: tensor.shape for name, tensor in ours.items() if not name.endswith("num_batches_tracked")}
    assert shapes == {name: tensor.shape for name, tensor in mobile_sam.items()}


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sam_parameter_names_are_ours(name):
    with torch.device("meta"):
        published = {n: t.shape for n, t in sam_model_registry[name]().state_dict().items()}
    ours = sam.Sam(name, sam.make_encoder(name), "").state_dict()
    assert {n: t.shape for n, t in ours.items()}.items() <= published.items()
    assert {n for n in published if n.startswith("image_encoder.")} <= set(ours)


def test_mobile_sam_gives_the_published_numbers(mobile_sam_file):
    maps = sam.open_sam("vit_t", mobile_sam_file, weights_of(mobile_sam_file))(published_image()[0])
    assert_published_maps(maps, "plain")


def line_of(call):
    with pytest.raises(UsageError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def sized(path, size):
    """Make a sparse file of a size."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_other_checksum_is_reported_with_both(tmp_path):
    path = sized(tmp_path / "mobile_sam.pt", PUBLISHED["vit_t"].bytes)
    line = line_of(lambda: open_teacher("vit_t", path))
    assert all(
        part in line for part in (str(path), sha256_of(path), PUBLISHED["vit_t"].sha256, PUBLISHED["vit_t"].address)
    )


def test_weights_of_another_sam_are_named(tmp_path):
    path = sized(tmp_path / "sam.pth", PUBLISHED["vit_l"].bytes)
    assert "these are vit_l's" in line_of(lambda: open_teacher("vit_b", path))


def test_truncated_file_is_reported_with_sizes(tmp_path, mobile_sam_file):
    path = tmp_path / "mobile_sam.pt"
    path.write_bytes(mobile_sam_file.read_bytes()[:1000])
    assert "1000 bytes, expected 40728226 for vit_t: truncated" in line_of(lambda: open_teacher("vit_t", path))


def test_pickle_is_not_executed(tmp_path):
    class Disguise:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "mobile_sam.pt"
    for write in (pickle.dump, lambda content, file, protocol: torch.save(content, file, pickle_protocol=protocol)):
        with path.open("wb") as file:
            write({"image_encoder.neck.0.weight": Disguise()}, file, 2)
        with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
            sam.open_sam("vit_t", path, weights_of(path))
    assert not (tmp_path / "run").exists()


def test_teachers_are_opened_by_name(tmp_path):
    assert set(TEACHERS) == {"efficientnet-lite0", "vit_t", "vit_b", "vit_l", "vit_h"}
    assert isinstance(open_teacher("efficientnet-lite0"), EfficientNetLite0)
    assert "efficientnet-lite0, vit_t" in line_of(lambda: open_teacher("vit_x"))
    assert "in a package" in line_of(lambda: open_teacher("efficientnet-lite0", tmp_path / "some.pth"))
    assert "no such file" in line_of(lambda: open_teacher("vit_h", tmp_path / "some.pth"))
