"""Pages that load nothing from outside: one style, figures as SVG inside."""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_page(room: str, template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """Write a page.

    Args:
        room: package that holds the template.
        template: its file, which extends `page.html`.
        filters: of the template's own.
        **values: what it shows; what a user wrote is escaped.
    """
    loaders = [PackageLoader(room, "."), PackageLoader("luthier", ".")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined)
    environment.filters |= filters
    return environment.get_template(template).render(**values)


def as_svg(figure: "Figure") -> str:
    """Return a figure as SVG for inlining; equal figures give equal text."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
