"""Pictures of rows: the latency distribution and the size sweep, side by side.

Ours in colour, baselines in greys, ceilings dashed: a figure without its floor and its ceiling
says little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from perf import machine
from perf.report import title
from perf.rows import Row, human

GREYS = ("#303030", "#606060", "#909090", "#b8b8b8")
OURS = ("#c8102e", "#f28e2b", "#8e44ad")
PEERS = ("#2e86ab", "#3a9d5d", "#7a9e9f", "#b5a642")


def draw(rows: Iterable[Row], about: dict[str, Any], path: str) -> str:
    """Draw what the rows allow into `path` (the suffix says the format); return the path.

    Raises
    ------
    SystemExit
        When matplotlib is not installed, or no row has anything to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install 'shmstack[perf]'") from None
    known = [row for row in rows if not row.missing]
    curves = [row for row in known if row.curve and row.size == _middle(known)]
    sweeps = [group for group in _sweeps(known) if len(group[0]) > 1]
    panels = bool(curves) + len(sweeps)
    if not panels:
        raise SystemExit("nothing to draw: --plot is for pingpong and stream")
    styles = _styles(known)
    figure = Figure(figsize=(7 * panels, 5.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if curves:
        _distribution(axes.pop(0), curves, styles)
    for axis, (sizes, unit, lines) in zip(axes, sweeps, strict=True):
        _sweep(axis, sizes, unit, lines, styles)
    figure.suptitle(machine.line(about), fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def _middle(rows: list[Row]) -> int:
    # The distribution is drawn for 64 B if that was measured, else for the smallest size.
    sizes = {row.size for row in rows if row.curve}
    return 64 if 64 in sizes else min(sizes, default=0)


def _styles(rows: list[Row]) -> dict[str, dict[str, Any]]:
    colours = {"baseline": iter(GREYS * 4), "ours": iter(OURS * 4), "peer": iter(PEERS * 4), "ceiling": iter(GREYS * 4)}
    styles: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row.transport not in styles:
            styles[row.transport] = {
                "color": next(colours[row.role]),
                "linestyle": "--" if row.role == "ceiling" else "-",
                "linewidth": 2.4 if row.role == "ours" else 1.3,
                "label": title(row),
            }
    return styles


def _distribution(axis: Any, rows: list[Row], styles: dict[str, dict[str, Any]]) -> None:
    # x counts nines: 90, 99, 99.9 ... have equal distances, as HdrHistogram's own plots have.
    for row in rows:
        x = [100 / max(100 - percent, 1e-3) for percent, _ in row.curve]
        axis.plot(x, [us for _, us in row.curve], **styles[row.transport])
    axis.set(xscale="log", yscale="log", ylabel="round trip, us", xlabel="percentile")
    axis.set_xticks([1, 2, 10, 100, 1e3, 1e4], ["0", "50", "90", "99", "99.9", "99.99"])
    axis.set_title(f"{rows[0].workload}: distribution, {human(rows[0].size)}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _sweeps(rows: list[Row]) -> list[tuple[list[int], str, dict[str, list[tuple[int, float]]]]]:
    # One panel for each workload and unit: sizes, unit, and a line for each transport.
    panels: dict[tuple[str, str], dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        if row.size and row.workload in ("pingpong", "stream"):
            panels.setdefault((row.workload, row.unit), {}).setdefault(row.transport, []).append((row.size, row.value))
    told = []
    for (workload, unit), lines in panels.items():
        sizes = sorted({size for line in lines.values() for size, _ in line})
        told.append((sizes, f"{workload}, {unit}", lines))
    return told


def _sweep(
    axis: Any, sizes: list[int], unit: str, lines: dict[str, list[tuple[int, float]]], styles: dict[str, dict[str, Any]]
) -> None:
    for transport, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, **styles[transport])
    axis.set(xscale="log", yscale="log", ylabel=unit, xlabel="message size")
    axis.set_xticks(sizes, [human(size) for size in sizes])
    axis.minorticks_off()
    axis.set_title("size sweep, medians")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
