"""The report as one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

TEMPLATE = Path(__file__).with_name("page.html")


def html_page(title: str, markdown: str, folder: Path) -> str:
    """The page with every figure inside it, as SVG.

    Args:
        title: What a browser's tab is called.
        markdown: The report.
        folder: Where its figures are.
    """

    def embed(
        renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any
    ) -> str:
        token = tokens[index]
        drawing = (folder / str(token.attrs["src"]).removesuffix(".png")).as_posix() + ".svg"
        content = base64.b64encode(Path(drawing).read_bytes()).decode()
        token.attrs["src"] = f"data:image/svg+xml;base64,{content}"
        return renderer.image(tokens, index, options, env)

    parser = MarkdownIt("js-default")
    parser.add_render_rule("image", embed)
    body = parser.render(markdown).replace("<table>", '<div class="table"><table>')
    body = body.replace("</table>", "</table></div>")
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(title=title, body=body)
