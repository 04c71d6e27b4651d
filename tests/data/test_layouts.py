"""Samples of small copies of the published data sets, and errors for damaged ones."""

import shutil

import numpy as np
import pytest
from PIL import Image

from stlm_edge.data import datasets
from stlm_edge.data.datasets import Sample
from stlm_edge.data.layouts import LAYOUTS
from stlm_edge.errors import UsageError
from stlm_edge.images import read_image, read_mask


def put(path, mode="RGB", size=(8, 6), marked=0):
    """Write an image; `marked` is the value of one pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new(mode, size)
    if marked:
        image.putpixel((1, 1), marked)
    image.save(path)


def marked_pixels(sample):
    image = read_image(sample.image)
    return int(read_mask(sample.mask, 24, image.size).sum())


def names(samples):
    return [(sample.image.name, sample.defect, sample.mask.name if sample.mask else None) for sample in samples]


@pytest.fixture
def visa(tmp_path):
    """Two categories as in the archive: .JPG images, masks that contain the number of the defect type."""
    root = tmp_path / "VisA"
    rows = []
    for category, width in (("candle", 4), ("pcb1", 3)):
        for split, label, numbers in (
            ("train", "normal", (7, 2)),
            ("test", "normal", (5,)),
            ("test", "anomaly", (1, 0)),
        ):
            for number in numbers:
                name = f"{number:0{width}}.JPG" if label == "normal" else f"{number:03}.JPG"
                image = f"{category}/Data/Images/{label.capitalize()}/{name}"
                mask = f"{category}/Data/Masks/Anomaly/{number:03}.png" if label == "anomaly" else ""
                put(root / image)
                if mask:
                    put(root / mask, "L", marked=1 + number)
                rows.append(f"{category},{split},{label},{image},{mask}")
        (root / category / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]) + "\n")
    (root / "LICENSE-DATASET").write_text("CC BY 4.0")
    return root


@pytest.fixture
def dagm(tmp_path):
    """Classes 1, 2 and 10, grey, with label files only for the defective images."""
    root = tmp_path / "DAGM"
    for number in (1, 2, 10):
        for half, first in (("Test", 1), ("Train", 576)):
            folder = root / f"Class{number}" / half
            for image in range(first, first + 4):
                put(folder / f"{image:04}.PNG", "L")
            put(folder / "Label" / f"{first + 1:04}_label.PNG", "L", marked=255)
            (folder / "Label" / "Labels.txt").write_text("1\n")
            (folder / "Thumbs.db").write_bytes(b"")
    return root


@pytest.fixture
def btad(tmp_path):
    """Images and masks: bmp and png in 01, png and png in 02, bmp and bmp in 03, each of its own size."""
    root = tmp_path / "BTech_Dataset_transformed"
    for product, image, mask, size in (("01", "bmp", "png", 16), ("02", "png", "png", 6), ("03", "bmp", "bmp", 8)):
        for number in (3, 1):
            put(root / product / "train" / "ok" / f"{number:04}.{image}", size=(size, 6))
        put(root / product / "test" / "ok" / f"0007.{image}", size=(size, 6))
        put(root / product / "test" / "ko" / f"0007.{image}", size=(size, 6))
        put(root / product / "ground_truth" / "ko" / f"0007.{mask}", "L", (size, 6), marked=255)
    return root


@pytest.fixture
def kolektor(tmp_path):
    """Two commutators with six parts each, grey and of uneven heights; an empty label file for each normal image."""
    root = tmp_path / "KolektorSDD"
    for item in ("kos01", "kos10"):
        for part in range(6):
            size = (5, 12 + part)
            put(root / item / f"Part{part}.jpg", "L", size)
            put(root / item / f"Part{part}_label.bmp", "L", size, marked=2 if part == 5 else 0)
    return root


def test_visa_follows_its_split_file(visa):
    assert datasets.categories(visa) == ["candle", "pcb1"]
    assert names(datasets.training_samples(visa, "candle")) == [("0002.JPG", "good", None), ("0007.JPG", "good", None)]
    tested = datasets.test_samples(visa, "candle")
    assert names(tested) == [
        ("0005.JPG", "good", None),
        ("000.JPG", "anomaly", "000.png"),
        ("001.JPG", "anomaly", "001.png"),
    ]
    assert [sample.anomalous for sample in tested] == [False, True, True]
    assert marked_pixels(tested[1]) == marked_pixels(tested[2]) == 3 * 4  # mask values 1 and 2, not 255
    assert datasets.test_samples(visa / "pcb1")[0].image.samefile(visa / "pcb1/Data/Images/Normal/005.JPG")


def test_visa_converted_by_its_authors_is_read(tmp_path):
    root = tmp_path / "VisA_pytorch" / "1cls"
    put(root / "candle/train/good/0836.JPG")
    put(root / "candle/test/good/0187.JPG")
    put(root / "candle/test/bad/000.JPG")
    put(root / "candle/ground_truth/bad/000.png", "L", marked=255)
    (root / "candle/ground_truth/good").mkdir()
    assert datasets.categories(root) == ["candle"]
    assert names(datasets.training_samples(root, "candle")) == [("0836.JPG", "good", None)]
    assert names(datasets.test_samples(root, "candle")) == [("0187.JPG", "good", None), ("000.JPG", "bad", "000.png")]
    with pytest.raises(
        UsageError, match=r"VisA_pytorch: no known layout, found 1cls/; .*1cls looks like mvtec, give that"
    ):
        datasets.categories(root.parent)


def test_dagm_trains_on_images_without_a_label_file(dagm):
    assert datasets.categories(dagm) == ["Class1", "Class2", "Class10"]
    trained = datasets.training_samples(dagm, "Class10")
    assert [sample.image.name for sample in trained] == ["0576.PNG", "0578.PNG", "0579.PNG"]
    tested = datasets.test_samples(dagm, "Class10")
    assert names(tested) == [
        ("0001.PNG", "good", None),
        ("0003.PNG", "good", None),
        ("0004.PNG", "good", None),
        ("0002.PNG", "defect", "0002_label.PNG"),
    ]
    assert marked_pixels(tested[3]) == 3 * 4
    assert datasets.test_samples(dagm / "Class10") == tested


def test_btad_masks_may_differ_in_file_type(btad):
    assert datasets.categories(btad) == ["01", "02", "03"]
    for product, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        trained = datasets.training_samples(btad, product)
        assert [sample.image.name for sample in trained] == [f"0001.{image}", f"0003.{image}"]
        tested = datasets.test_samples(btad, product)
        assert names(tested) == [(f"0007.{image}", "good", None), (f"0007.{image}", "ko", f"0007.{mask}")]
        assert marked_pixels(tested[1]) > 0
        assert datasets.test_samples(btad / product) == tested


def test_kolektor_has_the_split_of_anomalib(kolektor):
    assert datasets.categories(kolektor) == []
    trained, tested = datasets.training_samples(kolektor), datasets.test_samples(kolektor)
    places = [f"{sample.image.parent.name}/{sample.image.stem}" for sample in tested]
    # scikit-learn 1.9: train_test_split(range(10), train_size=0.8, random_state=42) keeps 8 and 1 back
    assert places == ["kos01/Part1", "kos10/Part3", "kos01/Part5", "kos10/Part5"]
    assert [sample.anomalous for sample in tested] == [False, False, True, True]
    assert tested[2].mask == kolektor / "kos01" / "Part5_label.bmp"
    assert marked_pixels(tested[2]) > 0
    assert len(trained) == 8
    assert not {sample.image for sample in trained} & {sample.image for sample in tested}
    with pytest.raises(UsageError, match="leave out --category"):
        datasets.test_samples(kolektor, "kos01")


@pytest.mark.parametrize("name", ["visa", "dagm", "btad"])
def test_category_is_required_and_must_exist(name, request):
    root = request.getfixturevalue(name)
    known = ", ".join(datasets.categories(root))
    with pytest.raises(UsageError, match=f"--category: {known}"):
        datasets.training_samples(root)
    with pytest.raises(UsageError, match=rf"no category \.\./x in it; there are {known}"):
        datasets.test_samples(root, "../x")


def test_samples_have_no_mask_without_ground_truth(visa, btad):
    shutil.rmtree(visa / "candle/Data/Masks")
    assert [sample.mask for sample in datasets.test_samples(visa, "candle")] == [None] * 3
    shutil.rmtree(btad / "01/ground_truth")
    assert [sample.mask for sample in datasets.test_samples(btad, "01")] == [None] * 2


@pytest.mark.parametrize(
    ("name", "mask", "category"),
    [
        ("visa", "candle/Data/Masks/Anomaly/000.png", "candle"),
        ("btad", "03/ground_truth/ko/0007.bmp", "03"),
        ("kolektor", "kos01/Part2_label.bmp", None),
    ],
)
def test_image_without_mask_is_refused(name, mask, category, request):
    root = request.getfixturevalue(name)
    (root / mask).unlink()
    with pytest.raises(UsageError, match=r": no .*(mask|Part2_label.bmp beside it)"):
        datasets.test_samples(root, category)


@pytest.mark.parametrize(
    ("name", "mask", "category"),
    [
        ("visa", "candle/Data/Masks/Anomaly/044.png", "candle"),
        ("dagm", "Class2/Test/Label/0044_label.PNG", "Class2"),
        ("btad", "01/ground_truth/ko/0044.png", "01"),
        ("kolektor", "kos10/Part9_label.bmp", None),
    ],
)
def test_mask_without_image_is_refused(name, mask, category, request):
    root = request.getfixturevalue(name)
    put(root / mask, "L", marked=255)
    with pytest.raises(UsageError, match=rf"{root / mask}: a mask without its image; expected the"):
        datasets.test_samples(root, category)


def test_second_mask_and_jpeg_mask_are_refused(btad):
    put(btad / "01/ground_truth/ko/0007.bmp", "L", (16, 6), marked=255)
    with pytest.raises(UsageError, match=r"a second mask beside 0007\.bmp; keep"):
        datasets.test_samples(btad, "01")
    put(btad / "02/ground_truth/ko/0008.jpg", "L", (16, 6))
    with pytest.raises(UsageError, match="a mask saved as JPEG"):
        datasets.test_samples(btad, "02")


def test_dagm_may_have_only_one_half(dagm):
    for number in (1, 2, 10):
        shutil.rmtree(dagm / f"Class{number}" / "Test")
    assert len(datasets.training_samples(dagm, "Class2")) == 3
    with pytest.raises(UsageError, match="Class2/Test: no such folder"):
        datasets.test_samples(dagm, "Class2")


def test_dagm_without_label_folder_is_refused(dagm):
    shutil.rmtree(dagm / "Class1/Train/Label")
    with pytest.raises(UsageError, match="Class1/Train: no Label folder in it"):
        datasets.training_samples(dagm, "Class1")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("", "no images in it"),
        ("candle,train,normal,/etc/passwd,\n", "path /etc/passwd; expected paths below"),
        ("candle,train,normal,candle/../../secret.png,\n", "path candle/../../secret.png; expected paths below"),
        ("..,train,normal,x.png,\n", "line 2: object ..; expected the name of a folder"),
        ("candle,train,normal,candle/gone.JPG,\n", "candle/gone.JPG: no such file, but listed in split_csv/1cls.csv"),
        ("candle,train,anomaly,candle/Data/Images/Anomaly/000.JPG,\n", "anomalous training images of candle"),
        ("candle,valid,normal,x,\n", "line 2: split valid and label normal; expected train or test"),
        ("candle,train\n", "line 2: expected the columns object,split,label,image,mask"),
        ("candle,train,normal,a,b,c\n", "line 2: expected the columns object,split,label,image,mask"),
        ("candle,test,normal,candle/Data/Images/Normal/0005.JPG,\n", "no training images of candle"),
        ("candle,train,normal,\udcff,\n", "cannot be read"),
    ],
)
def test_invalid_split_file_is_refused(visa, rows, words):
    split = visa / "split_csv" / "1cls.csv"
    split.write_bytes(("object,split,label,image,mask\n" + rows).encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        datasets.training_samples(visa, "candle")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_split_file_is_not_read(visa):
    with (visa / "split_csv" / "1cls.csv").open("r+b") as file:
        file.truncate(8 << 30)
    with pytest.raises(UsageError, match="8,589,934,592 bytes; expected VisA's list of images"):
        datasets.training_samples(visa, "candle")


def test_given_format_overrides_detection(tmp_path, dagm):
    put(tmp_path / "set/train/ok/0.png")
    put(tmp_path / "set/train/good/0.png")
    assert [sample.image.parent.name for sample in datasets.training_samples(tmp_path / "set")] == ["ok"]
    assert [s.image.parent.name for s in datasets.training_samples(tmp_path / "set", format="mvtec")] == ["good"]
    with pytest.raises(UsageError, match="--format voc: unknown; expected visa, dagm, btad, kolektor, mvtec, plain"):
        datasets.training_samples(dagm, "Class1", format="voc")
    with pytest.raises(UsageError, match=r"split_csv/1cls.csv: no such file; expected VisA's list"):
        datasets.categories(dagm, format="visa")


@pytest.mark.parametrize("samples", [datasets.training_samples, datasets.test_samples, datasets.categories])
def test_unknown_layout_is_refused(samples, tmp_path):
    put(tmp_path / "Train_set" / "a.png")
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        samples(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}: no known layout, found Train_set/, labels.json; expected one of these: visa: ")
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.LOOKS}" in line
    assert "\n" not in line


def test_images_of_mixed_sizes_and_modes_are_evaluated(tmp_path):
    from stlm_edge.evaluation.evaluate import evaluate
    from stlm_edge.threshold import DecisionThreshold

    for number, (mode, size) in enumerate([("L", (40, 20)), ("RGBA", (20, 50)), ("P", (9, 9)), ("I;16", (30, 30))]):
        put(tmp_path / f"test/good/{number}.png", mode, size)
        put(tmp_path / f"test/hole/{number}.png", mode, size)
        put(tmp_path / f"ground_truth/hole/{number}_mask.png", "1" if number % 2 else "L", size, marked=1)

    class Dark:
        name, size = "dark", 32

        def run(self, image):
            assert image.shape == (32, 32, 3)
            return np.zeros((32, 32), np.float32), 0.0

    decision_threshold = DecisionThreshold(0.5, 0.1, 0.0, 1.0, 0.01, 50, "maximum plus margin", 0.05, "training")
    samples = datasets.test_samples(tmp_path)
    assert all(isinstance(sample, Sample) for sample in samples)
    metrics = evaluate(Dark(), samples, 32, decision_threshold, None, "dark")
    assert (metrics["images"], metrics["pixel_auroc"]) == (8, 0.5)
