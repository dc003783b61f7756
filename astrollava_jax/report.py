"""Pages with pictures and curves, from plain facts: one HTML file that needs nothing beside it.

No script, no network: pictures are inlined, curves are SVG drawn here, and every text is escaped,
because text that comes from data may hold anything.
"""

import base64
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, SupportsFloat

from astrollava_jax import files

Point = tuple[float, float]

PICTURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
    b"RIFF": "image/webp",
}
"""How the files begin that every browser shows."""

MARKS = {True: "right", False: "wrong", None: "unjudged"}

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 54.0, 22.0, 12.0, 40.0
"""Size of a drawing and of the margins around its axes, in SVG units."""

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #fff; --ink: #1d2126; --quiet: #666e78;
  --line: #e4e5e3; --right: #23794a; --wrong: #b3392f;
  --s0: #2b6cb0; --s1: #c2621d; --s2: #2f855a; --s3: #7a4fb0; --s4: #b8336a; --s5: #7a6a12; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1b1f23; --ink: #e3e6e8;
  --quiet: #99a2ab; --line: #30363c; --right: #6cc28f; --wrong: #ee8578;
  --s0: #74b0ec; --s1: #eb9c5f; --s2: #6cc492; --s3: #b697e6; --s4: #ee82ad; --s5: #cdbb55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3.5rem 1.5rem 5rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; font-weight: 650; }
h2 { margin: 0; font-size: 1.2rem; font-weight: 620; } h3 { margin: 0 0 .6rem; font-size: .95rem; }
p { margin: 0; max-width: 44rem; white-space: pre-line; overflow-wrap: anywhere; }
header p { margin-top: .7rem; color: var(--quiet); font-size: 1.05rem; }
section { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: 1.25rem; margin-top: 3rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
section > * { grid-column: 1 / -1; min-width: 0; } section > .curve { grid-column: auto; }
section > .curve:only-of-type { grid-column: 1 / -1; max-width: 42rem; }
.curve, .card { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; break-inside: avoid; }
.curve { padding: 1rem 1.1rem .9rem; }
path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: var(--quiet); } .grid { stroke: var(--line); } .axis { stroke: var(--quiet); }
ul { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0 0; padding: 0;
  list-style: none; font-size: .85rem; color: var(--quiet); }
i { display: inline-block; width: 1.1rem; height: 3px; margin: 0 .5rem .2rem 0; }
table { border-collapse: collapse; min-width: 50%; font-size: .93rem; }
th, td { padding: .45rem 1.6rem .45rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); } .scroll { overflow-x: auto; }
th { color: var(--quiet); font-weight: 550; font-size: .85rem; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .87em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: grid; gap: 1.25rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.card { overflow: hidden; font-size: .92rem; overflow-wrap: anywhere; }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #0b0d0f; }
.card div { padding: .85rem 1rem 1rem; } dl, dd { margin: 0; }
dt { margin-top: .55rem; color: var(--quiet); font-size: .78rem; }
.right::before, .wrong::before { display: inline-block; width: 1.15em; font-weight: 700; }
.right::before { content: "\\2713"; color: var(--right); }
.wrong::before { content: "\\2717"; } .wrong { color: var(--wrong); }
"""


@dataclasses.dataclass(frozen=True)
class Given:
    """An answer that somebody gave."""

    who: str
    """Whose answer it is, `after stage 1`."""
    text: str
    right: bool | None = None
    """None where nobody judged."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A picture with a question about it."""

    picture: bytes
    """An encoded file: PNG, JPEG, GIF or WebP."""
    question: str
    expected: str
    given: Sequence[Given] = ()


class Page:
    """A page that is filled from top to bottom and then written."""

    def __init__(self, title: str, summary: str = ""):
        self.title = title
        self._head = f"<header><h1>{escape(title)}</h1>{_paragraphs(summary)}</header>"
        self._sections: list[list[str]] = []

    def section(self, title: str) -> "Page":
        """Begins a part with a heading of its own."""
        self._sections.append([f"<h2>{escape(title)}</h2>"])
        return self

    def text(self, text: str) -> "Page":
        """Adds paragraphs; an empty line parts them."""
        return self._add(_paragraphs(text))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> "Page":
        """Adds a table. Columns of numbers stand to the right.

        Raises:
            ValueError: if a row is not as long as the header.
        """
        rows = [[str(cell) for cell in row] for row in rows]
        uneven = [row for row in rows if len(row) != len(header)]
        if uneven:
            raise ValueError(f"a row of {len(header)} cells was expected, found {uneven[0]}")
        return self._add(_table(header, [[escape(cell) for cell in row] for row in rows]))

    def curve(
        self,
        title: str,
        series: Mapping[str, tuple[Iterable[SupportsFloat], Iterable[SupportsFloat]]],
        *,
        x_label: str = "step",
        y_label: str = "loss",
    ) -> "Page":
        """Adds one drawing of several curves, every point of each; neighbours share a line."""
        points = {name: _points(*xy) for name, xy in series.items()}
        legend = "".join(
            f'<li><i style="background:var(--s{index % 6})"></i>{escape(name)}{_gaps(own)}</li>'
            for index, (name, own) in enumerate(points.items())
        )
        return self._add(
            f'<figure class="curve"><h3>{escape(title)}</h3>'
            f"{_drawing(title, list(points.values()), x_label, y_label)}"
            f"<ul>{legend}</ul></figure>"
        )

    def picture_cards(self, cards: Iterable[Card]) -> "Page":
        """Adds pictures, each with its question, the expected answer and the given ones.

        Raises:
            ValueError: if a picture is in a format that browsers do not show.
        """
        return self._add(f'<div class="cards">{"".join(map(_card, cards))}</div>')

    def files(self, rows: Iterable[tuple[str, str]]) -> "Page":
        """Adds a list of paths with what each of them is."""
        cells = [[f"<code>{escape(path)}</code>", escape(what)] for path, what in rows]
        return self._add(_table(("path", "what it is"), cells))

    def html(self) -> str:
        """The whole page."""
        body = "</section>\n<section>".join("\n".join(parts) for parts in self._sections)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{self._head}\n<section>{body}</section>\n</body>\n</html>\n"
        )

    def write(self, path: str) -> None:
        """Writes the page as one file."""
        files.write_text(path, self.html())

    def _add(self, part: str) -> "Page":
        if not self._sections:
            self._sections.append([])
        self._sections[-1].append(part)
        return self


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(header))]
    kinds = [' class="number"' if yes else "" for yes in numeric]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header))
    lines = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row))}</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{lines}</table></div>'


def _is_number(cell: str) -> bool:
    """Whether a cell belongs to a column of numbers: begins with a digit, or is a blank."""
    return cell.lstrip("+-.\u2212")[:1].isdigit() or cell in ("", "-", "\u2013")


def _card(card: Card) -> str:
    answers = "".join(
        f'<dt>{escape(given.who)}</dt><dd class="{MARKS[given.right]}">{escape(given.text)}</dd>'
        for given in card.given
    )
    return (
        f'<div class="card"><img src="{_data_uri(card.picture)}" alt=""><div>'
        f"<strong>{escape(card.question)}</strong>"
        f"<dl><dt>expected</dt><dd>{escape(card.expected)}</dd>{answers}</dl></div></div>"
    )


def _data_uri(picture: bytes) -> str:
    kind = next((kind for start, kind in PICTURES.items() if picture.startswith(start)), None)
    if kind is None:
        raise ValueError(
            f"a PNG, JPEG, GIF or WebP file was expected, found bytes that begin {picture[:8]!r}"
        )
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def _points(x: Iterable[SupportsFloat], y: Iterable[SupportsFloat]) -> list[Point]:
    return list(zip(map(float, x), map(float, y), strict=True))


def _gaps(points: Sequence[Point]) -> str:
    """Says aloud how many points cannot be drawn."""
    missing = sum(not _finite(point) for point in points)
    return f" ({missing} not finite)" if missing else ""


def _finite(point: Point) -> bool:
    return all(map(math.isfinite, point))


def _drawing(title: str, curves: Sequence[Sequence[Point]], x_label: str, y_label: str) -> str:
    """Axes, ticks, grid and one path per curve, as SVG."""
    shown = [point for points in curves for point in points if _finite(point)]
    x_ticks = _ticks([x for x, _ in shown])
    y_ticks = _ticks([y for _, y in shown])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(point: Point) -> Point:
        across = (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (point[1] - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (right - LEFT), bottom - up * (bottom - TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in y_ticks:
        y = place((x_ticks[0], tick))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(_label(tick, LEFT - 8, y + 4, "end"))
    for tick in x_ticks:
        x = place((tick, y_ticks[0]))[0]
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(_label(tick, x, bottom + 18, "middle"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(_label(x_label, (LEFT + right) / 2, HEIGHT - 5.0, "middle"))
    middle = (TOP + bottom) / 2
    parts.append(_label(y_label, 12.0, middle, "middle", f' transform="rotate(-90 12 {middle})"'))
    for index, points in enumerate(curves):
        line = _path([place(point) if _finite(point) else None for point in points])
        parts.append(f'<path d="{line}" style="stroke:var(--s{index % 6});stroke-width:1.5"/>')
    return "".join([*parts, "</svg>"])


def _label(text: Any, x: float, y: float, anchor: str, more: str = "") -> str:
    shown = f"{text:,.10g}" if isinstance(text, float) else escape(str(text))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{shown}</text>'


def _path(points: Sequence[Point | None]) -> str:
    """One line through the points, broken where one is missing; a lone point becomes a dot."""
    commands, pen = [], "M"
    for index, point in enumerate(points):
        if point is not None:
            commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
            alone = pen == "M" and (index + 1 == len(points) or points[index + 1] is None)
            commands += ["h0"] if alone else []
        pen = "L" if point is not None else "M"
    return "".join(commands)


def _ticks(values: Sequence[float]) -> list[float]:
    """Four to eight round numbers, evenly spaced, that hold all values between them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high - low <= 1e-6 * size:  # a level line: show it in the middle
        low, high = low - (0.5 * size or 0.5), high + (0.5 * size or 0.5)
    if low > 0 and low < 0.4 * high:
        low = 0.0  # a scale that nearly reaches zero begins there
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]
