"""SVG elements, whatever text they hold.

Pictures fill the width that they get: lengths along x are shares of it (``%``), those along y and
of text are pixels, so letters have the same size on a phone and on a desk.
"""

from __future__ import annotations

import hashlib

from markupsafe import Markup


def tag(name: str, /, *children: Markup | str, **attributes: object) -> Markup:
    """An element. Underscores in attributes are hyphens (``class_`` is class); None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(children)
    return Markup("<{}{}>{}</{}>").format(Markup(name), written, inside, Markup(name))


def share(fraction: float) -> str:
    """A length along x."""
    return f"{100 * fraction:.3f}%"


def sign(x: float, y: float, path: str, title: str, style: str) -> Markup:
    """A small shape around a point, with words that appear on hovering over it."""
    shape = tag("path", tag("title", title), d=path, class_=style)
    return tag("svg", shape, x=share(x), y=f"{y:.2f}", overflow="visible")


def picture(title: str, description: str, height: float, style: str, *children: Markup) -> Markup:
    """The whole drawing; ``description`` says in words what can be seen."""
    content = Markup("").join(children)
    key = hashlib.sha256(f"{title}\0{description}\0{content}".encode(errors="replace"))
    name = f"picture-{key.hexdigest()[:12]}"
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-text"),
        content,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{name}-title",
        aria_describedby=f"{name}-text",
        width="100%",
        height=f"{height:.0f}",
        class_=style,
    )
