"""A heat map as the paper draws it: lengths across, depths down, green where all is right and red where nothing is."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

COLOURS = LinearSegmentedColormap.from_list("right", ["#F0496E", "#EBB839", "#0CD79F"])  # of LWM's figure
WRITTEN = 150  # cells at most that have their number written in them
TICKS = 20  # labels of an axis at most


class Axis(NamedTuple):
    """Name an axis, and the unit of its values: `%`, or nothing."""

    name: str
    unit: str = ""

    def label(self, value: int) -> str:
        """Write a value short where that is exact: 32768 is 32K."""
        for power, letter in ((20, "M"), (10, "K")):
            if not self.unit and value and not value % 2**power:
                return f"{value >> power}{letter}"
        return f"{value}{self.unit}"


def draw(picture: Path, title: str, columns: Axis, rows: Axis, right: Mapping[tuple[int, int], float]) -> None:
    """Draw the share of right answers of each cell (column, row) as PNG; a cell that is not there stays grey.

    The same numbers and title make the same bytes with the same matplotlib.
    """
    across, down = (sorted({cell[side] for cell in right}) for side in (0, 1))
    shares = np.array([[right.get((column, row), np.nan) for column in across] for row in down])
    size = 2.2 + 0.55 * np.clip(len(across), 6, 20), 1.6 + 0.4 * np.clip(len(down), 5, 20)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=columns.name, ylabel=rows.name, title=title, facecolor="#CCCCCC")
    image = axes.imshow(shares, cmap=COLOURS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for ticks, axis, values in ((axes.set_xticks, columns, across), (axes.set_yticks, rows, down)):
        shown = range(0, len(values), -(-len(values) // TICKS))
        ticks(shown, [axis.label(values[n]) for n in shown])
    axes.tick_params(axis="x", rotation=45 if len(across) > 10 else 0)
    if shares.size <= WRITTEN:
        for (row, column), share in np.ndenumerate(shares):
            if not np.isnan(share):
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=9)
    figure.colorbar(image, label="right", format=lambda share, _: f"{100 * share:.0f}%")
    figure.savefig(picture, dpi=120)
