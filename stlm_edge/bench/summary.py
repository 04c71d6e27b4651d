"""The rows of a bench as text: one headline, and a table."""

from collections.abc import Sequence

from stlm_edge.bench.result import Row

_HEAD = ("artifact", "runtime", "verdicts", "max diff", "cosine", "p50 ms", "p90", "p99", "MB", "peak MB")
_UNKNOWN = "not measured"


def headline(rows: Sequence[Row]) -> str:
    """Return, per device, if its fastest bundle gives the trained model's verdicts, and its speed, in one line.

    Speeds are compared within one device only.
    """
    devices: dict[str | None, list[Row]] = {}
    for row in rows:
        devices.setdefault(row.device, []).append(row)
    if len(devices) == 1:
        return _of_one_device(rows)
    same = sum(all(row.passed for row in of_device) for of_device in devices.values())
    lines = [("" if name else "this machine: ") + _of_one_device(of_device) for name, of_device in devices.items()]
    return f"same verdicts as the trained model on {same} of {len(devices)} devices. " + ". ".join(lines)


def _of_one_device(rows: Sequence[Row]) -> str:
    """Return the line of one device; it is about a row that failed, if there is one."""
    for row in rows:
        if not row.passed:
            return f"{label(row)} FAILED: {row.failure}"
    best = min([row for row in rows if row.target] or rows, key=_p50)
    parts = []
    if best.parity:
        same = best.parity.images - best.parity.verdict_flips
        parts.append(f"same verdicts as the trained model on {same} of {best.parity.images} images")
        if best.parity.verdict_flips:
            parts[0] += f" ({best.parity.verdict_flips} within the tolerance of the threshold)"
    if best.latency_ms:
        speed = f"p50 {milliseconds(best.latency_ms.p50)} ms"
        if best.latency_ms.p90 is not None:
            speed += f", p90 {milliseconds(best.latency_ms.p90)} ms"
        if peer := _peer(best, rows):
            speed += f", {_p50(peer) / _p50(best):.1f}x the speed of {label(peer)}"
        parts.append(speed)
    if best.energy_mj is not None:
        parts.append(f"{best.energy_mj:.1f} mJ per image")
    return f"{label(best)}: " + "; ".join(parts)


def label(row: Row) -> str:
    """Return the row's name, with its device unless that is this machine."""
    return f"{row.name} on {row.device}" if row.device else row.name


def _p50(row: Row) -> float:
    return row.latency_ms.p50 if row.latency_ms else float("inf")


def _peer(best: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row to compare the best one's speed with: an fp32 bundle, else the checkpoint, else any other."""
    others = [row for row in rows if row is not best and row.latency_ms]
    return min(others, key=lambda row: (row.precision != "fp32", row.target is None), default=None)


def is_proxy_teacher(teacher: str | None) -> bool:
    """Return True for EfficientNet-Lite0, the proxy for SAM that needs no large download."""
    return "efficientnet" in (teacher or "").lower()


def milliseconds(value: float | None) -> str:
    """Return 0.42, 4.2, 42 or 420; "not measured" for None."""
    if value is None:
        return _UNKNOWN
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 20 else f"{value:.0f}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned plain text."""
    accuracy = any(row.accuracy for row in rows)
    lines = [[*_HEAD, *(("image AUROC", "pixel AUROC", "AUPRO") if accuracy else ())]]
    for row in rows:
        lines.append([label(row), row.runtime, *_parity_cells(row), *_latency_cells(row), f"{row.size_mb:.1f}"])
        lines[-1].append(_UNKNOWN if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}")
        if accuracy:
            lines[-1] += _accuracy_cells(row)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _parity_cells(row: Row) -> list[str]:
    parity = row.parity
    if not parity:
        return [_UNKNOWN if row.passed else "FAILED", _UNKNOWN, _UNKNOWN]
    same = f"{parity.images - parity.verdict_flips}/{parity.images} same"
    difference = "not finite" if parity.max_abs_diff is None else f"{parity.max_abs_diff:.1e}"
    return [same if row.passed else f"{same} FAILED", difference, f"{parity.cosine:.5f}"]


def _latency_cells(row: Row) -> list[str]:
    latency = row.latency_ms
    return list(map(milliseconds, (latency.p50, latency.p90, latency.p99) if latency else (None,) * 3))


def _accuracy_cells(row: Row) -> list[str]:
    if not row.accuracy:
        return [_UNKNOWN] * 3
    metrics = row.accuracy.image_auroc, row.accuracy.pixel_auroc, row.accuracy.aupro
    return ["n/a" if metric is None else f"{metric:.4f}" for metric in metrics]
