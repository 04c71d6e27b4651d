"""One network in a process of its own, so that its memory is its own; peers.py starts it.

    python benchmarks/peers_worker.py KIND FILE IMAGES.npy [ANSWERS]

KIND is `packed` (an ONNX file of stlm-export's), `anomalib` (one of anomalib's) or `published` (a checkpoint). Says in
a line of JSON that it is ready, having judged the N×S×S×3 uint8 images where a folder for the ANSWERS is given. Every
line on its standard input is then one query, answered by its milliseconds: from an image in memory to map and score.
At the end of the input it prints its peak memory.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from stlm_edge.bench.machine.system import peak_memory_mb

Output = tuple[np.ndarray, float]
"""Map S×S float32, and score."""
QUERIED = 4  # images that the queries take in turn


def packed(file: Path) -> Callable[[np.ndarray], Output]:
    from stlm_edge.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(file, threads=1).run


def anomalib(file: Path) -> Callable[[np.ndarray], Output]:
    """The same options of onnxruntime as `packed`; only the two outputs that are compared are asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(image: np.ndarray) -> Output:
        x = np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)
        anomaly_map, score = session.run(["anomaly_map", "pred_score"], {given.name: x})
        return anomaly_map.reshape(image.shape[:2]), float(score.ravel()[0])

    return run


def published(file: Path) -> Callable[[np.ndarray], Output]:
    """As the published code judges an image: eager float32, nothing folded, the decoder image by image."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import plain_training
    import torch
    import torch.nn.functional as F

    from stlm_edge.model import checkpoint

    torch.set_num_threads(1)
    model = checkpoint.load(file).model

    @torch.no_grad()
    def run(image: np.ndarray) -> Output:
        x = plain_training.normalised(model, torch.from_numpy(image)[None])
        plain, denoising = (
            [plain_training.unit(found) for found in plain_training.maps_of(encoder, *decoder, x)]
            for decoder in [(model.mask_decoder, model.prompt_encoder)]
            for encoder in (model.plain, model.denoising)
        )
        disagreement = torch.cat([-p * d for p, d in zip(plain, denoising, strict=True)], dim=1)
        found = torch.sigmoid(model.fa.head(model.fa.res(disagreement)))
        anomaly_map = F.interpolate(found, size=image.shape[:2], mode="bilinear", align_corners=False)
        highest, _ = torch.sort(anomaly_map.flatten(), descending=True)
        return anomaly_map[0, 0].numpy(), highest[:100].mean().item()

    return run


KINDS = {"packed": packed, "anomalib": anomalib, "published": published}


def main() -> None:
    kind, file, images, *answers = sys.argv[1:]
    run = KINDS[kind](Path(file))
    if answers:
        found = [run(image) for image in np.load(images)]
        np.save(Path(answers[0]) / "maps.npy", np.stack([anomaly_map for anomaly_map, _ in found]))
        np.save(Path(answers[0]) / "scores.npy", np.array([score for _, score in found], np.float32))
    queried = [np.array(image) for image in np.load(images, mmap_mode="r")[:QUERIED]]
    run(queried[0])
    print(json.dumps({"ready": True}), flush=True)
    for number, _ in enumerate(sys.stdin):
        start = perf_counter()
        run(queried[number % len(queried)])
        print(json.dumps({"ms": 1e3 * (perf_counter() - start)}), flush=True)
    print(json.dumps({"peak_memory_mb": peak_memory_mb()}), flush=True)


if __name__ == "__main__":
    main()
