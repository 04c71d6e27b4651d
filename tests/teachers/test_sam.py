"""SAM as the teacher: its two maps are those of the package itself, and what isn't the published file is refused."""

import json
import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import REFERENCE, fill, published_image
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as PackageSam

from stlm_edge.errors import UsageError
from stlm_edge.teachers import TEACHERS, open_teacher, sam
from stlm_edge.teachers.efficientnet_lite0 import EfficientNetLite0
from stlm_edge.teachers.weights import PUBLISHED, Weights, _sha256

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
    teacher.fill(package.state_dict(), "weights")
    return teacher


def noise(size, count=1):
    shape = (count, size, size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_the_maps_are_those_of_the_package(package, teacher):
    image = noise(SMALL, 2)
    maps = teacher(image)
    for index in range(2):
        assert worst([m[index : index + 1] for m in maps], what_the_package_says(package, image[index])) <= 1e-3


@pytest.mark.slow
def test_vit_b_gives_the_maps_of_the_package(tmp_path):
    package = filled(sam_model_registry["vit_b"]())
    path = tmp_path / "vit_b.pth"
    torch.save(package.state_dict(), path)
    image, _ = published_image()
    assert worst(sam.open_sam("vit_b", path, weights_of(path))(image), what_the_package_says(package, image[0])) <= 1e-3


def test_other_sizes_run_at_the_native_one_and_are_averaged_over_the_students_cells(teacher):
    image = noise(SMALL // 2)
    native = F.interpolate(image.permute(0, 3, 1, 2).float(), (SMALL, SMALL), mode="bilinear", antialias=True)
    normal = (native - teacher.pixel_mean) / teacher.pixel_std
    embedding = teacher.image_encoder(normal)
    found, tokens = teacher(image)
    assert found.shape == tokens.shape == (1, 256, 4, 4)
    assert torch.allclose(found[0, :, 1, 2], embedding[0, :, 2:4, 4:6].mean((1, 2)), atol=1e-5)


def test_it_is_frozen_and_answers_in_float32(teacher):
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
    """A row that declares a file published, whatever it is."""
    with path.open("rb") as file:
        return Weights("vit_t", "https://example.org/" + path.name, path.stat().st_size, _sha256(file))


def test_mobile_sams_names_are_ours(mobile_sam):
    ours = sam.Sam("vit_t", sam.make_encoder("vit_t"), "").state_dict()
    shapes = {name: tensor.shape for name, tensor in ours.items() if not name.endswith("num_batches_tracked")}
    assert shapes == {name: tensor.shape for name, tensor in mobile_sam.items()}


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sams_names_are_ours(name):
    with torch.device("meta"):
        published = {n: t.shape for n, t in sam_model_registry[name]().state_dict().items()}
    ours = sam.Sam(name, sam.make_encoder(name), "").state_dict()
    assert {n: t.shape for n, t in ours.items()}.items() <= published.items()
    assert {n for n in published if n.startswith("image_encoder.")} <= set(ours)


def test_mobile_sam_gives_the_published_numbers(mobile_sam_file):
    expected = np.load(REFERENCE / "expected_1024.npz")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    maps = sam.open_sam("vit_t", mobile_sam_file, weights_of(mobile_sam_file))(published_image()[0])
    torch.set_num_threads(threads)
    for k in (1, 2):
        assert np.abs(maps[k - 1][:, ::16, ::8, ::8].numpy() - expected[f"plain_{k}"]).max() <= 1e-3


def line_of(call):
    with pytest.raises(UsageError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    return line


def sized(path, size):
    """A file of that size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_a_wrong_digest_is_told_with_both(tmp_path):
    path = sized(tmp_path / "mobile_sam.pt", PUBLISHED["vit_t"].bytes)
    with path.open("rb") as file:
        found = _sha256(file)
    line = line_of(lambda: open_teacher("vit_t", path))
    assert all(part in line for part in (str(path), found, PUBLISHED["vit_t"].sha256, PUBLISHED["vit_t"].address))


def test_another_sam_is_named(tmp_path):
    path = sized(tmp_path / "sam.pth", PUBLISHED["vit_l"].bytes)
    assert "these are vit_l's" in line_of(lambda: open_teacher("vit_b", path))


def test_a_truncated_file_is_told_by_its_size(tmp_path, mobile_sam_file):
    path = tmp_path / "mobile_sam.pt"
    path.write_bytes(mobile_sam_file.read_bytes()[:1000])
    assert "1000 bytes, vit_t's weights have 40728226: truncated" in line_of(lambda: open_teacher("vit_t", path))
    line = line_of(lambda: sam.open_sam("vit_t", path, weights_of(path)))
    assert "cannot be opened" in line or "opened safely" in line


def test_a_pickle_in_disguise_is_not_run(tmp_path):
    class Disguise:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    path = tmp_path / "mobile_sam.pt"
    for write in (pickle.dump, lambda content, file, protocol: torch.save(content, file, pickle_protocol=protocol)):
        with path.open("wb") as file:
            write({"image_encoder.neck.0.weight": Disguise()}, file, 2)
        assert "opened safely" in line_of(lambda: sam.open_sam("vit_t", path, weights_of(path)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"image_encoder.neck.0.weight": 3}, {1: torch.ones(1)}])
def test_anything_but_tensors_by_name_is_refused(tmp_path, content):
    path = tmp_path / "mobile_sam.pt"
    torch.save(content, path)
    assert "expected tensors by name" in line_of(lambda: sam.open_sam("vit_t", path, weights_of(path)))


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path, mobile_sam):
    path, name = tmp_path / "mobile_sam.pt", "image_encoder.neck.0.weight"
    torch.save({n: t for n, t in mobile_sam.items() if n != name}, path)
    line = line_of(lambda: sam.open_sam("vit_t", path, weights_of(path)))
    assert f"{name}: found nothing, expected [256, 320, 1, 1]" in line
    torch.save(mobile_sam | {name: torch.ones(2)}, path)
    line = line_of(lambda: sam.open_sam("vit_t", path, weights_of(path)))
    assert f"{name}: found [2], expected [256, 320, 1, 1]" in line


def test_teachers_are_opened_by_name(tmp_path):
    assert set(TEACHERS) == {"efficientnet-lite0", "vit_t", "vit_b", "vit_l", "vit_h"}
    stand_in = open_teacher("efficientnet-lite0")
    assert isinstance(stand_in, EfficientNetLite0)
    assert stand_in.is_stand_in
    assert "efficientnet-lite0, vit_t" in line_of(lambda: open_teacher("vit_x"))
    assert "in a package" in line_of(lambda: open_teacher("efficientnet-lite0", tmp_path / "some.pth"))
    assert "no such file" in line_of(lambda: open_teacher("vit_h", tmp_path / "some.pth"))
