"""The report of the quickstart: what was made, learned and found, told from plain facts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from astrollava_jax.data.example import Example
from astrollava_jax.quickstart.examples import scene_of
from astrollava_jax.quickstart.questions import QUESTIONS
from astrollava_jax.report import Card, Given, Page

REPORT = "report.html"
SHOWN_PICTURES = 12
NOT_COMPARED = "torch is not installed: the export was written and not compared"
TOLERANCE = 1e-4
"""Of the largest logit: how far an export may be from ours in PyTorch."""

FLOORS = {"kind": 0.90, "arms": 0.75, "colour": 0.95, "count": 0.95}
"""What the recipe should reach: captions after stage 1, asked questions after stage 2."""

WAYS = {"caption": "read from a caption", "asked": "asked"}

FILES = (
    ("data/train, data/heldout", "the simulated sky as TFRecords"),
    ("stage0.yaml, stage1.yaml, stage2.yaml", "the three runs: copy one, change it, train it"),
    ("parts/", "the small tower and decoder, and the sky that they were made with"),
    ("runs/stage0, runs/stage1, runs/stage2", "logs, TensorBoard files, checkpoints"),
    ("export/", "the finished model, as transformers loads it"),
    ("samples/first.png", "the picture of the last question"),
    (REPORT, "this page"),
)


@dataclasses.dataclass(frozen=True)
class Told:
    """One evaluation of the held-out pictures."""

    when: str
    way: str
    """A key of `WAYS`."""
    accuracies: Mapping[str, float]
    """By name of question."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    """The table, a row per question."""
    answers: Sequence[Sequence[str]]
    """What was said to each picture, one text per question."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Logits of the export, in transformers and here."""

    difference: float
    """The largest one, as a part of the largest logit."""
    pictures: int

    @property
    def equal(self) -> bool:
        """Whether they are the same but for rounding."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        verdict = f"equal within {TOLERANCE:.0e}" if self.equal else "NOT EQUAL"
        return (
            f"logits of the export in transformers and here: {verdict} (largest difference "
            f"{self.difference:.1e} of the largest logit, {self.pictures} pictures)"
        )


@dataclasses.dataclass
class Facts:
    """Everything that the page is made of."""

    cores: int
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    """By chapter, over all starts."""
    logs: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    told: list[Told] = dataclasses.field(default_factory=list)
    held_out: Sequence[Example] = ()
    comparison: Comparison | None = None
    asked: tuple[bytes, str, str, str] | None = None
    """Picture, question, truth, answer."""

    @property
    def all_seconds(self) -> float:
        """What all chapters took."""
        return sum(self.seconds.values())


def write(path: str, facts: Facts) -> None:
    """Writes the page as one file."""
    page = Page("A LLaVA for a simulated sky", _summary(facts))
    _evaluation(page, facts)
    _curves(page, facts)
    _pictures(page, facts)
    _export(page, facts)
    page.section("Where everything is").text("In the folder of this page:").files(FILES)
    _times(page, facts)
    page.write(path)


def verdicts(facts: Facts) -> list[tuple[str, str, float, float]]:
    """The figures that have a floor: (when, question, accuracy, floor)."""
    judged = (("after stage 1", "caption"), ("after stage 2", "asked"))
    return [
        (told.when, name, accuracy, FLOORS[name])
        for told in facts.told
        if (told.when, told.way) in judged
        for name, accuracy in told.accuracies.items()
    ]


def _summary(facts: Facts) -> str:
    missed = [f"{name} {when}" for when, name, found, floor in verdicts(facts) if found < floor]
    if facts.comparison is not None and not facts.comparison.equal:
        missed.append("the export's logits in PyTorch")
    verdict = (
        f"Below what it should reach: {', '.join(missed)}."
        if missed
        else ("Every figure is what it should reach, or better.")
    )
    return (
        "A small LLaVA was made from nothing on this machine. A simulated sky was drawn and "
        "described. A stand-in tower and decoder were trained on captions of another sky "
        "(stage 0), and their projector was thrown away. A fresh one was aligned on captions "
        "(stage 1), then decoder and projector were tuned on dialogues (stage 2). It took "
        f"{facts.all_seconds:.0f} seconds on {facts.cores} cores.\n\n{verdict}"
    )


def _evaluation(page: Page, facts: Facts) -> None:
    page.section("Held-out questions").text(
        f"{len(facts.held_out)} pictures that no stage saw. `blind` is the same questions with the "
        "pictures shuffled: what is known without looking. `majority` is what the most frequent "
        "answer gets. Intervals are Wilson's, 95%. After stage 1 the model was never asked a "
        "question, so it is judged by its captions; stage 2 is judged by its answers."
    )
    rows = [(told.when, WAYS[told.way], *row) for told in facts.told for row in told.rows]
    page.table(("when", "how", *facts.told[0].header), rows)


def _curves(page: Page, facts: Facts) -> None:
    page.section("Losses")
    for name, log in facts.logs.items():
        steps = [entry for entry in log if "loss" in entry and "bad" not in entry]
        held = [entry for entry in log if "held_out_loss" in entry]
        series = {"training": ([e["step"] for e in steps], [e["loss"] for e in steps])}
        if held:
            series["held out"] = ([e["step"] for e in held], [e["held_out_loss"] for e in held])
        page.curve(name, series)


def _pictures(page: Page, facts: Facts) -> None:
    page.section("What it says")
    cards = [_card(facts, number) for number in range(min(SHOWN_PICTURES, len(facts.held_out)))]
    page.picture_cards(cards)


def _card(facts: Facts, number: int) -> Card:
    """A picture with the question about its kind, and what each stage said to it."""
    shown = facts.held_out[number]
    question, scene = QUESTIONS["kind"], scene_of(shown.id)
    truth = question.truth(scene)
    given = []
    for told in facts.told:
        read = question.read_caption if told.way == "caption" else question.read_answer
        # The kind applies to every scene and is asked first.
        said = told.answers[number][0]
        given.append(Given(f"{told.when}, {WAYS[told.way]}", said, read(said) == truth))
    return Card(shown.images[0], question.text, f"{truth} ({shown.caption})", given)


def _export(page: Page, facts: Facts) -> None:
    page.section("Given back to PyTorch").text(str(facts.comparison or NOT_COMPARED))
    if facts.asked is not None:
        picture, question, truth, answer = facts.asked
        read = QUESTIONS["kind"].read_answer(answer)
        page.picture_cards(
            [Card(picture, question, truth, [Given("astrollava ask", answer, read == truth)])]
        )


def _times(page: Page, facts: Facts) -> None:
    page.section("Time")
    page.table(
        ("chapter", "seconds"),
        [(name, f"{seconds:.1f}") for name, seconds in facts.seconds.items()]
        + [("all", f"{facts.all_seconds:.1f}")],
    )
