"""The loss curve of a run as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import metrics

WINDOW = 0.05  # share of the steps over which the drawn mean runs


def draw(diary: Path, picture: Path) -> None:
    """Draw a diary's losses, their running mean and the held-out losses over steps as PNG."""
    lines = metrics.read(diary)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats)")
    steps, losses = _column(lines, "loss")
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss")
    axes.plot(steps, running_mean(losses), color="tab:blue", label="running mean")
    steps, losses = _column(lines, "held_out_loss")
    if len(steps):
        axes.plot(steps, losses, "o-", color="tab:orange", markersize=4, label="held out")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Average each value with those before it, over a window of 5 % of them."""
    window = max(1, round(len(values) * WINDOW))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _column(lines: list[metrics.Line], key: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(line["step"], line[key]) for line in lines if key in line]
    return tuple(np.array(found, np.float64).reshape(-1, 2).T)  # type: ignore[return-value]
