"""Draws the diagrams of the documents, docs/img/overview.svg and docs/img/concepts.svg: `make drawings`.

They are files and no text of a page, so that they look the same in a browser, on a phone and on paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "img"
#: Fill and edge of a box, by what it stands for.
COLOURS = {
    "client": ("#e8f0fe", "#3367d6"),
    "stream": ("#fff4e0", "#c77800"),
    "worker": ("#e6f4ea", "#1e7e44"),
    "watch": ("#f3e8fd", "#7b3fb5"),
    "vector": ("#eef1f4", "#5b6770"),
}
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #1c2530 }
  .title { font-size: 16px; font-weight: 600 } .line { font-size: 13px }
  .label { font-size: 13px; fill: #44505c }
  .arrow { stroke: #44505c; stroke-width: 1.6; fill: none; marker-end: url(#head) }
"""


@dataclass
class Drawing:
    """An SVG of a size, in pixels, that grows by boxes, arrows and texts."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, width: int, height: int, kind: str, title: str, *lines: str) -> None:
        fill, edge = COLOURS[kind]
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{edge}" '
            'stroke-width="1.5"/>'
        )
        middle, top = x + width / 2, y + height / 2 - 9 * len(lines) + 5
        self.text(middle, top, title, "title")
        for number, line in enumerate(lines, 1):
            self.text(middle, top + 2 + 18 * number, line, "line")

    def text(self, x: float, y: float, text: str, kind: str = "label", anchor: str = "middle") -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        way = " L ".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path class="arrow" d="M {way}"/>')

    def svg(self) -> str:
        head = (
            '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z" fill="#44505c"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img">',
                f"<title>{escape(self.title)}</title>",
                f"<style>{STYLE}</style>",
                f"<defs>{head}</defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="10" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def overview() -> Drawing:
    """The way of a request, and who watches it."""
    d = Drawing(1000, 400, "Producers, Redis streams, AMN, fallback and shadow workers, judge and alerts")
    d.box(20, 70, 170, 90, "client", "Producers", "services, batch jobs,", "HTTP gateway")
    d.box(285, 70, 170, 90, "stream", "requests", "Redis streams:", "high, normal, low")
    d.box(550, 70, 190, 90, "worker", "AMN workers", "model, scores,", "policy")
    d.arrow((190, 115), (283, 115))
    d.text(237, 106, "submit")
    d.arrow((455, 115), (548, 115))
    d.text(502, 106, "lease")
    d.arrow((645, 70), (645, 34), (105, 34), (105, 68))
    d.text(370, 26, "reply: next vector, confidence, margin, reasons")
    d.box(285, 235, 170, 70, "stream", "fallback", "Redis stream")
    d.box(550, 235, 190, 70, "worker", "Fallback workers", "slower model, blended in")
    d.arrow((645, 160), (645, 198), (370, 198), (370, 233))
    d.text(505, 190, "escalated: at most 20 %")
    d.arrow((455, 270), (548, 270))
    d.text(502, 261, "lease")
    d.arrow((645, 305), (645, 345), (105, 345), (105, 162))
    d.text(370, 337, "reply: the blended vector")
    d.box(810, 70, 170, 90, "watch", "Shadow workers", "prediction against", "the true next vector")
    d.arrow((740, 115), (808, 115))
    d.text(774, 106, "1-5 %")
    d.box(810, 205, 170, 60, "watch", "Judge", "is quality falling?")
    d.arrow((895, 160), (895, 203))
    d.text(905, 187, "sums", anchor="start")
    d.box(810, 315, 170, 60, "watch", "Alerts", "the person on call")
    d.arrow((895, 265), (895, 313))
    d.text(400, 385, "A request is leased and not popped: when a worker dies, another one answers it.")
    return d


def concepts() -> Drawing:
    """From text to a scored prediction."""
    d = Drawing(1000, 440, "From text to vectors, a context, a prediction, and its scores")
    d.box(20, 40, 150, 293, "client", "An article", "in reading order")
    d.text(205, 355, "encoder")
    for n in range(6):
        y = 43 + 50 * n
        d.box(240, y, 150, 37, "vector", f"vector {n + 1}")
        d.arrow((170, y + 18), (238, y + 18))
    d.parts.append(
        '<rect x="230" y="34" width="170" height="255" rx="10" fill="none" stroke="#3367d6" '
        'stroke-width="2" stroke-dasharray="6 4"/>'
    )
    d.text(315, 24, "context: five vectors of 768 numbers")
    d.box(480, 120, 120, 80, "worker", "AMN")
    d.arrow((402, 160), (478, 160))
    d.box(660, 125, 160, 70, "vector", "prediction", "of vector 6")
    d.arrow((600, 160), (658, 160))
    d.box(640, 355, 340, 65, "stream", "Reference bank", "vectors of known text")
    d.arrow((780, 195), (780, 353))
    d.text(790, 270, "confidence: best cosine", anchor="start")
    d.text(790, 290, "margin: best minus second", anchor="start")
    d.arrow((392, 311), (700, 311), (700, 197))
    d.text(545, 302, "truth: compared by shadow workers")
    d.text(
        20, 385, "A confident prediction is the answer; another one may go to a slower model.", anchor="start"
    )
    return d


PICTURES: dict[str, Callable[[], Drawing]] = {"overview": overview, "concepts": concepts}


def main() -> None:
    """Writes every picture."""
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()
