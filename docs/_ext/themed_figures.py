"""Figures as SVG inside the page, where they take the colours of the light or the dark theme."""

import html
import io
import re
from collections.abc import Callable

import matplotlib
from matplotlib.figure import Figure

#: What matplotlib draws in black, gray or white, and the variable of the theme that it becomes.
COLORS = {
    "#000000": "var(--color-foreground-primary)",
    "#696969": "var(--color-foreground-muted)",
    "#808080": "var(--color-foreground-muted)",
    "#b0b0b0": "var(--color-foreground-border)",
    "#cccccc": "var(--color-background-border)",
    "#ffffff": "var(--color-background-primary)",
}
OPENING = re.compile(r'.*?<svg [^>]*?viewBox="([^"]*)"[^>]*>', re.DOTALL)
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
# Two figures on one page would have the same ids, and nothing refers to these ids.
NUMBERED_GROUPS = re.compile(r' id="[a-zA-Z]+[\w.]*_\d+"')


def themed(draw: Callable[[], Figure | None], caption: str, kind: str = "drawing") -> str:
    """A figure of matplotlib as Markdown.

    Args:
        draw: Makes the figure; its black, gray and white become colours of the theme, others stay.
            If it returns None, the result is empty.
        caption: What it shows, for those who cannot see it.
        kind: Its class, for the style sheet.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context():
        # The gallery, whose scripts run in this process, has a style of its own.
        matplotlib.rcdefaults()
        # Text stays text, which can be selected and searched; the salt makes builds reproducible.
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": caption})
        figure = draw()
        if figure is None:
            return ""
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = METADATA.sub("", buffer.getvalue(), count=1)
    opening = (
        f'<div class="{kind}"><svg role="img" aria-label="{html.escape(caption)}" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1">'
    )
    drawing = NUMBERED_GROUPS.sub("", OPENING.sub(opening, drawing, count=1))
    for color, variable in COLORS.items():
        drawing = drawing.replace(color, variable)
    return f"```{{raw}} html\n{drawing.strip()}</div>\n```"
