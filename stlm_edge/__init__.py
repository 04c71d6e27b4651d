"""STLM on small devices: open a bundle and ask it about an image.

    bundle = stlm_edge.open("bundles/cpu-fp32")
    verdict = reader.predict("part.png")

Importing this package needs nothing but the standard library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stlm_edge.bundle import Bundle
    from stlm_edge.bundle import open_bundle as open
    from stlm_edge.verdict import Verdict

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
