import base64
import math
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest

from astrollava_jax.report import Card, Given, Page, _ticks

# The smallest PNG: one black pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Elements(HTMLParser):
    """Every element with its attributes, and the texts."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def drawing(page: Page) -> ElementTree.Element:
    html = page.html()
    return ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + len("</svg>")])


def paths(svg: ElementTree.Element) -> list[str]:
    """The curves of a drawing: the paths that have a colour of their own."""
    return [path.get("d") or "" for path in svg.iter("path") if path.get("style")]


def test_text_from_data_stays_text():
    evil = '<script>alert("1")</script>\'"&'
    page = Page(evil, evil).section(evil).text(evil).table([evil, "b"], [[evil, 1]])
    page.curve(evil, {evil: ([0, 1], [1, 2])}, x_label=evil, y_label=evil)
    page.picture_cards([Card(PIXEL, evil, evil, [Given(evil, evil, False)])]).files([(evil, evil)])
    found = Elements(page.html())
    assert "script" not in found.tags
    # title, h1, summary, h2, text, th, td, h3, legend, x, y, question, expected, who, answer,
    # path, what
    assert sum(evil in text for text in found.texts) == 17


def test_nothing_is_fetched_and_pictures_are_inside():
    found = Elements(Page("t").picture_cards([Card(PIXEL, "q", "e")]).html())
    (source,) = [value for name, value in found.attributes if name == "src"]
    assert source == "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    assert not [name for name, _ in found.attributes if name in ("href", "onclick")]
    assert not {"script", "link", "iframe"} & set(found.tags)


def test_a_picture_that_no_browser_shows_is_refused():
    with pytest.raises(ValueError, match="PNG, JPEG, GIF or WebP"):
        Page("t").picture_cards([Card(b"II*\x00 a TIFF", "q", "e")])


def test_answers_are_marked():
    given = [Given("a", "yes", True), Given("b", "no", False), Given("c", "hm")]
    html = Page("t").picture_cards([Card(PIXEL, "q", "yes", given)]).html()
    assert '<dd class="right">yes</dd>' in html
    assert '<dd class="wrong">no</dd>' in html
    assert '<dd class="unjudged">hm</dd>' in html


def test_columns_of_numbers_stand_to_the_right():
    html = Page("t").table(["name", "share"], [["kind", ".955"], ["arms", "-"]]).html()
    assert '<td>kind</td><td class="number">.955</td>' in html
    with pytest.raises(ValueError, match="2 cells"):
        Page("t").table(["a", "b"], [["only one"]])


def test_a_curve_shows_every_point_in_its_place():
    svg = drawing(Page("t").curve("c", {"a": ([0, 1, 2], [0.0, 4.0, 2.0]), "b": ([2], [4.0])}))
    labels = [text.text for text in svg.iter("text")]
    assert labels == ["0", "1", "2", "3", "4", "0", "0.5", "1", "1.5", "2", "step", "loss"]
    # 560 x 300 with margins 54, 22, 12, 40: x from 54 to 538, y from 260 up to 12.
    assert paths(svg) == ["M54.0 260.0L296.0 12.0L538.0 136.0", "M538.0 12.0h0"]


def test_points_that_are_not_finite_break_the_line_and_are_counted():
    page = Page("t").curve("c", {"a": ([0, 1, 2, 3], [1.0, 2.0, math.nan, 2.0])})
    (line,) = paths(drawing(page))
    assert line.count("M") == 2 and line.count("L") == 1 and line.endswith("h0")
    assert "a (1 not finite)" in Elements(page.html()).texts


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 10.0], [0, 2, 4, 6, 8, 10]),
        ([1.0, 1300.0], [0, 500, 1000, 1500]),
        ([0.35, 4.6], [0, 1, 2, 3, 4, 5]),
        ([1.23, 1.27], [1.23, 1.24, 1.25, 1.26, 1.27]),
        ([-1e-3, 2e-5], [-1e-3, -7.5e-4, -5e-4, -2.5e-4, 0, 2.5e-4]),
        ([2.0], [0, 1, 2, 3]),
        ([0.0, 0.0], [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
        ([1.0, 1.0 + 1e-15], [0, 0.5, 1, 1.5]),
        ([], [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_hold_all_values(values, expected):
    assert _ticks(values) == expected


def test_the_page_is_one_file(tmp_path):
    page = Page("A sky", "One\n\ntwo").section("Files").files([("runs/stage1", "the projector")])
    page.write(str(tmp_path / "report.html"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.html()
    assert "<p>One</p><p>two</p>" in page.html()
