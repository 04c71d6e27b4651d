"""Fit one of anomalib's models and export it to ONNX, both by its Engine as its users do.

peers.py runs this in the peers' own environment, where stlm_edge is not installed:

    python benchmarks/peers_anomalib.py PEER --size S --data DIR --images F.npy --out DIR
    python benchmarks/peers_anomalib.py candidates --size S

`--data` has MVTec AD's layout, every image S×S. `--images`, N×S×S×3 uint8, are judged by the fitted model in torch.
Writes `model.onnx`, `maps.npy` (N×S×S float32), `scores.npy` (N float32) and `about.json` to `--out`.

Pretrained weights are downloaded as ever; where they can't be, random ones (seed 0) take their place and `about.json`
says so. EfficientAD learns STEPS steps only, on the training images in place of ImageNet's: neither its speed nor its
size depends on that.
"""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np
import timm
import torch
from anomalib import models
from anomalib.data import Folder
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import AnomalyDINO, EfficientAd, Patchcore
from anomalib.pre_processing import PreProcessor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2 import Compose, Normalize, Resize

STEPS = 5
CANDIDATES = (  # later than EfficientAD; not SuperADD and GeneralAD, whose encoders are DINO's ViT-H+ and ViT-L
    *("AnomalyDINO", "AnomalyVFM", "Dinomaly", "FoundAD", "Glass", "InpFormer", "L2BT"),
    *("MHPatchcore", "Patchflow", "Rad", "Supersimplenet", "UniNet"),
)
NO_DOWNLOAD = (OSError, URLError)  # what the hubs raise derives from them
weights = "pretrained"


def efficient_ad(size: int, which: str) -> EfficientAd:
    return EfficientAd(model_size=which, pre_processor=EfficientAd.configure_pre_processor((size, size)))


def patchcore(size: int) -> Patchcore:
    return Patchcore(pre_processor=Patchcore.configure_pre_processor((size, size)))


def patchcore_lite0(size: int, backbone: Path) -> Patchcore:
    """On the stand-in teacher's features of strides 8 and 16, with its weights."""
    global weights
    model = Patchcore(
        backbone="tf_efficientnet_lite0",
        layers=("blocks.2", "blocks.4"),
        pre_trained=False,
        pre_processor=PreProcessor(Compose([Resize((size, size)), Normalize([127 / 255] * 3, [128 / 255] * 3)])),
    )
    extractor = model.model.feature_extractor.feature_extractor
    extractor.load_state_dict(torch.load(backbone, weights_only=True))
    weights = "ImageNet"
    return model


def anomaly_dino(size: int) -> AnomalyDINO:
    return AnomalyDINO(pre_processor=AnomalyDINO.configure_pre_processor((size, size)))


PEERS: dict[str, Callable[[int, Path], Any]] = {
    "EfficientAD-S": lambda size, _: efficient_ad(size, "small"),
    "EfficientAD-M": lambda size, _: efficient_ad(size, "medium"),
    "PatchCore": lambda size, _: patchcore(size),
    "PatchCore, EfficientNet-Lite0": patchcore_lite0,
    "AnomalyDINO-S": lambda size, _: anomaly_dino(size),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=(*PEERS, "candidates"))
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--backbone", type=Path, help="EfficientNet-Lite0's weights under timm's names")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    or_random_weights()
    if options.peer == "candidates":
        print(json.dumps([candidate(name, options.size) for name in CANDIDATES]))
        return
    model = PEERS[options.peer](options.size, options.backbone)
    fit_and_export(model, options)


def or_random_weights() -> None:
    """Let timm and EfficientAD go on with random weights where theirs can't be downloaded."""
    create, prepare = timm.create_model, EfficientAd.prepare_pretrained_model

    def create_model(*args: Any, pretrained: bool = False, **kwargs: Any) -> Any:
        global weights
        if pretrained:
            try:
                return create(*args, pretrained=True, **kwargs)
            except NO_DOWNLOAD:
                weights = "random"
        return create(*args, pretrained=False, **kwargs)

    def prepare_pretrained_model(self: EfficientAd) -> None:
        global weights
        try:
            prepare(self)
        except NO_DOWNLOAD:
            weights = "random"

    timm.create_model, EfficientAd.prepare_pretrained_model = create_model, prepare_pretrained_model


def fit_and_export(model: Any, options: argparse.Namespace) -> None:
    of_efficient_ad = isinstance(model, EfficientAd)
    if of_efficient_ad:
        model.imagenet_dir = options.data / "train"  # a folder of folders of images, which is what it wants
    kinds = sorted(folder.name for folder in (options.data / "test").iterdir() if folder.name != "good")
    masks = [f"ground_truth/{kind}" for kind in kinds] if (options.data / "ground_truth").is_dir() else None
    images = Folder(
        name="peers",
        root=options.data,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir=[f"test/{kind}" for kind in kinds],
        mask_dir=masks,
        train_batch_size=1 if of_efficient_ad else 8,
        eval_batch_size=8,
        num_workers=0,
        seed=0,
    )
    engine = Engine(
        default_root_dir=options.out / "engine",
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        **({"max_steps": STEPS} if of_efficient_ad else {}),
    )
    engine.fit(model, datamodule=images)
    side = (options.size, options.size)
    # PatchCore's file for any batch takes images by twos only: the export's example becomes the rule.
    one_image = {"dynamic_shapes": None} if options.peer.startswith("PatchCore") else None
    made = engine.export(model, ExportType.ONNX, export_root=options.out, input_size=side, onnx_kwargs=one_image)
    assert made is not None

    model.eval()
    maps, scores = [], []
    with torch.inference_mode():
        for image in np.load(options.images):
            answer = model(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
            maps.append(answer.anomaly_map.reshape(side).numpy())
            scores.append(answer.pred_score.item())
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, *side))
    np.save(options.out / "maps.npy", np.stack(maps))
    np.save(options.out / "scores.npy", np.array(scores, np.float32))
    about = {
        "weights": weights,
        "parameters": sum(parameter.numel() for parameter in model.model.parameters()),
        "flops": counter.get_total_flops(),
        "memory_bank": list(model.model.memory_bank.shape) if hasattr(model.model, "memory_bank") else None,
        "file": str(made.relative_to(options.out)),
    }
    (options.out / "about.json").write_text(json.dumps(about))


def candidate(name: str, size: int) -> dict[str, Any]:
    """Parameters and operations of a model as anomalib sets it up; memory banks, still empty, take no part."""
    found: dict[str, Any] = {"name": name, "parameters": None, "flops": None, "why_not": None}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            parts = dict.fromkeys(("pre_processor", "post_processor", "evaluator", "visualizer"), False)
            model = getattr(models, name)(**parts).model.eval()
            found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            model(torch.zeros(1, 3, size, size))
        except Exception as error:
            found["why_not"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    found["flops"] = counter.get_total_flops() or None
    return found


if __name__ == "__main__":
    main()
