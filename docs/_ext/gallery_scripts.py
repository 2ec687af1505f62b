"""How scripts of the gallery and of the tutorials are run: the same for each of them."""

import logging
import warnings
from typing import Any

import matplotlib as mpl

# Readable on a light page and on a dark one.
INK = "#808a94"
STYLE = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 110,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.facecolor": "none",
    "legend.edgecolor": INK,
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def prepare(gallery_conf: dict[str, Any], script: str) -> None:
    """Draw for light and dark pages, and fail on warnings that readers would see."""
    # A package of Furo makes every library in the process log everything.
    logging.getLogger().setLevel(logging.WARNING)
    mpl.rcParams.update(STYLE)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", UserWarning)
