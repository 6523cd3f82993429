"""Draw the diagrams of docs/architecture.md: boxes on a grid and arrows between them, as SVG that fits a phone.

.venv/bin/python scripts/diagrams.py
"""

from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH, ROW, HEIGHT, MARGIN = 520, 92, 62, 14
COLOURS = {"room": "#3d5a80", "shared": "#98501f", "outside": "#5c6370"}
"""Fill of a box by what it stands for: dark enough for white text, and to be seen on a white and on a black page."""
LINE = "#8b919c"


@dataclass(frozen=True)
class Box:
    """What stands in a row, from one share of the width to another."""

    kind: str
    row: int
    left: float
    right: float
    title: str
    line: str = ""

    @property
    def x(self) -> float:
        """Its left edge."""
        return MARGIN + self.left * (WIDTH - 2 * MARGIN)

    @property
    def width(self) -> float:
        """From its left edge to its right one."""
        return (self.right - self.left) * (WIDTH - 2 * MARGIN)

    @property
    def y(self) -> float:
        """Its upper edge."""
        return MARGIN + self.row * ROW

    @property
    def middle(self) -> float:
        """Halfway between its edges."""
        return self.x + self.width / 2

    def draw(self) -> str:
        """Return the box with its words."""
        words = [
            f'<text x="{self.middle:g}" y="{self.y + (26 if self.line else 37):g}" class="title">{escape(self.title)}</text>'
        ]
        if self.line:
            words.append(f'<text x="{self.middle:g}" y="{self.y + 46:g}">{escape(self.line)}</text>')
        frame = (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" height="{HEIGHT}" rx="7" fill="{COLOURS[self.kind]}"/>'
        )
        return frame + "".join(words)


def down(above: Box, below: Box) -> str:
    """Return an arrow from a box to one under it, in the middle of what they have in common."""
    x = (max(above.x, below.x) + min(above.x + above.width, below.x + below.width)) / 2
    return arrow((x, above.y + HEIGHT), (x, below.y))


def across(one: Box, other: Box) -> str:
    """Return an arrow from a box to one beside it."""
    y = one.y + HEIGHT / 2
    return arrow((one.x + one.width, y), (other.x, y)) if one.x < other.x else arrow((one.x, y), (other.x + other.width, y))


def back(below: Box, above: Box, at: float) -> str:
    """Return an arrow that goes up beside the boxes, at a share of the width, from one to the right edge of another."""
    x = MARGIN + at * (WIDTH - 2 * MARGIN)
    low, high = below.y + HEIGHT / 2, above.y + HEIGHT / 2
    return arrow((below.x + below.width, low), (x, low), (x, high), (above.x + above.width, high))


def arrow(*points: tuple[float, float]) -> str:
    """Return a line with a head."""
    return f'<polyline points="{" ".join(f"{x:g},{y:g}" for x, y in points)}" marker-end="url(#head)"/>'


def svg(name: str, boxes: list[Box], arrows: list[str]) -> str:
    """Return the drawing; `name` is what is read aloud."""
    height = 2 * MARGIN + max(box.row for box in boxes) * ROW + HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"',
            f' role="img" aria-label="{escape(name)}">',
            "<style>text{font:15px system-ui,sans-serif;fill:#fff;text-anchor:middle}.title{font-weight:600;font-size:17px}"
            f"polyline{{fill:none;stroke:{LINE};stroke-width:2}}</style>",
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker>',
            *arrows,
            *(box.draw() for box in boxes),
            "</svg>\n",
        ]
    )


def loop() -> str:
    """Return the way from raw rows to a model in production, and back."""
    raw = Box("outside", 0, 0, 0.86, "raw rows", "a file, a folder, a bucket")
    data = Box("room", 1, 0, 0.86, "data_processing", "clean, scrub, de-duplicate, split, tokenise")
    training = Box("room", 2, 0, 0.86, "training", "worker processes, checkpoints, resume")
    evaluation = Box("room", 3, 0, 0.86, "evaluation", "same questions to every model; the gate")
    deployment = Box("room", 4, 0, 0.86, "deployment", "package, check, register")
    registry = Box("shared", 5, 0, 0.86, "registry", "versions, aliases, deployment log")
    gateway = Box("shared", 6, 0, 0.52, "gateway", "OpenAI's API")
    clients = Box("outside", 6, 0.62, 0.86, "clients")
    log = Box("shared", 7, 0, 0.86, "request log", "requests, votes, corrections")
    monitoring = Box("room", 8, 0, 0.86, "monitoring", "drift, quality, experiments: one decision")
    boxes = [raw, data, training, evaluation, deployment, registry, gateway, clients, log, monitoring]
    column = [raw, data, training, evaluation, deployment, registry, gateway, log, monitoring]
    arrows = [down(above, below) for above, below in pairwise(column)]
    arrows += [across(clients, gateway), back(monitoring, registry, 0.93), back(monitoring, raw, 1)]
    return svg(
        "Raw rows become a model in production; what its traffic shows leads back to the registry and to the data", boxes, arrows
    )


def request() -> str:
    """Return the way of one request through the gateway."""
    client = Box("outside", 0, 0, 1, "client", "OpenAI's API, or the page")
    limits = Box("shared", 1, 0, 1, "keys and limits", "who asks, how much, how large")
    route = Box("shared", 2, 0, 1, "route", "a subject keeps its variant, a variant names a version")
    prepare = Box("shared", 3, 0, 1, "prepare", "clean, scrub and template as in training")
    worker = Box("room", 4, 0, 0.48, "worker process", "one a version")
    upstream = Box("outside", 4, 0.52, 1, "vLLM", "or another server")
    answer = Box("shared", 5, 0, 1, "answer", "placeholders become the client's values again")
    log = Box("shared", 6, 0, 0.48, "request log", "a row each")
    metrics = Box("shared", 6, 0.52, 1, "metrics", "Prometheus")
    boxes = [client, limits, route, prepare, worker, upstream, answer, log, metrics]
    arrows = [down(client, limits), down(limits, route), down(route, prepare), down(prepare, worker), down(prepare, upstream)]
    arrows += [down(worker, answer), down(upstream, answer), down(answer, log), down(answer, metrics)]
    return svg("The way of a request through the gateway", boxes, arrows)


if __name__ == "__main__":
    for name, drawing in {"loop": loop, "request": request}.items():
        (IMAGES / f"{name}.svg").write_text(drawing(), encoding="utf-8")
