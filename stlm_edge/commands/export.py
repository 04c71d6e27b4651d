"""stlm-export: pack a trained model for a device, and check that its verdicts are the trained model's."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from stlm_edge.commands.parser import CommandParser, needs_extra
from stlm_edge.errors import exit_with_one_line

EXAMPLES = """examples:
  stlm-export --target cpu --precision int8 --checkpoint runs/bottle/checkpoint.safetensors --out bundles/cpu-int8
  stlm-export --target web --out site
the second writes a web page around its bundles, with onnxruntime-web in it, which npm downloads once"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run stlm-export."""
    options = parser().parse_args(arguments)
    with exit_with_one_line("interrupted; no bundle was written"), needs_extra("export"):
        from stlm_edge.export.pipeline import BUNDLES, export_all
        from stlm_edge.export.web_site import add_page, check_site

        folder = options.out or BUNDLES / options.target
        is_site = options.target == "web" and options.precision is None
        if is_site:
            check_site(folder, options.force)
        exported = export_all(
            options.target,
            options.precision,
            options.out,
            checkpoint=options.checkpoint,
            via=options.via,
            quantization_folder=options.quantization_set,
            data=options.data,
            category=options.category,
            format=options.format,
            allow_parity_loss=options.allow_parity_loss,
            force=options.force,
        )
        if is_site:
            add_page(folder, [bundle.folder for bundle in exported])
        if options.json:
            values = [bundle.as_json() for bundle in exported]
            print(json.dumps(values if len(values) > 1 else values[0], indent=2, allow_nan=False))
        else:
            print("\n\n".join(bundle.describe() for bundle in exported))
            if is_site:
                print(f"\n{folder}: a page for any static server; try it: python -m http.server --directory {folder}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    command = CommandParser("stlm-export", "Pack a trained model for a device and check it.", EXAMPLES)
    add = command.add_argument
    add("--target", required=True, metavar="T", help="device class: cpu, jetson, desktop-gpu, android, ios or web")
    add("--checkpoint", type=Path, metavar="F", help="trained model (default: the newest run's)")
    add(
        "--precision",
        metavar="P",
        help="fp32, fp16, int8 or palette6 (default: the target's; for web: all, and a page)",
    )
    add("--via", metavar="C", help="another converter: openvino (for cpu), torch-tensorrt (for desktop-gpu)")
    add("--quantization-set", type=Path, metavar="DIR", help="normal images for quantization (default: the run's)")
    command.add_data(
        "labelled images: the gate then compares the accuracy on them, too",
        "category of a data set that has several",
        required=False,
    )
    add("--out", type=Path, metavar="DIR", help="bundle folder (default: bundles/TARGET-PRECISION)")
    add("--allow-parity-loss", action="store_true", help="write a bundle that fails the gate, and mark it")
    add("--force", action="store_true", help="replace an existing bundle at --out")
    add("--json", action="store_true", help="print the result as JSON")
    return command


if __name__ == "__main__":
    main()
