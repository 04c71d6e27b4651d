"""STLM on small devices: open a bundle and predict.

    bundle = stlm_edge.open("bundles/cpu-fp32")
    verdict = bundle.predict("part.png")

Importing this package needs the standard library alone. It switches onnxruntime's telemetry off unless the user has set
ORT_DISABLE_TELEMETRY: from 1.29 on, onnxruntime writes a device id under the home folder and reports to its vendor.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stlm_edge.bundle import Bundle
    from stlm_edge.bundle import open_bundle as open
    from stlm_edge.verdict import Verdict

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is initialised

__version__ = "0.1.0"
__all__ = ["Bundle", "Verdict", "__version__", "open"]


def __getattr__(name: str) -> Any:
    if name == "Verdict":
        from stlm_edge.verdict import Verdict

        return Verdict
    if name in ("Bundle", "open"):
        from stlm_edge.bundle import reader

        return reader.Bundle if name == "Bundle" else reader.open_bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
