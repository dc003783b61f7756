"""`quickstart`: the whole job on a simulated sky, from nothing to a report, on this machine."""

import contextlib
import dataclasses
import gc
import io
import os
import time
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image
from rich.console import Console

from astrollava_jax import files
from astrollava_jax.config import load
from astrollava_jax.data import example
from astrollava_jax.data.example import Example
from astrollava_jax.data.sources import TFRecordSource
from astrollava_jax.data.tfrecord import write_set
from astrollava_jax.inference.evaluate import HEADER, Evaluation, Question, evaluate, table
from astrollava_jax.inference.model import Model
from astrollava_jax.quickstart import recipe, story
from astrollava_jax.quickstart.examples import examples, scene_of
from astrollava_jax.quickstart.questions import QUESTIONS
from astrollava_jax.quickstart.vocabulary import tokenizer_files
from astrollava_jax.run.config import RunConfig
from astrollava_jax.run.convert import convert
from astrollava_jax.run.initial import fresh_addresses, make_fresh
from astrollava_jax.run.model import load_model, to_answer
from astrollava_jax.run.opening import open_any, open_init
from astrollava_jax.run.stage import describe
from astrollava_jax.run.train import train
from astrollava_jax.sharding import placements
from astrollava_jax.training.metrics import read_log
from astrollava_jax.weights.save import save
from astrollava_jax.weights.source import Overlay

ANSWER_TOKENS, CAPTION_TOKENS = 16, 48
PROBES = 3
"""Pictures on which the export is compared with PyTorch."""


def quickstart(out: str, sizes: recipe.Sizes | None = None) -> None:
    """Does the whole job below `out`; what is finished there is not done again.

    Raises:
        ValueError: if `out` holds something else, or a stage whose file was changed.
        RuntimeError: if PyTorch does not compute what we do of the export.
    """
    folder = files.absolute(out)
    sizes = sizes or recipe.Sizes()
    check_folder(folder, recipe.stage_files(folder, sizes))
    if files.exists(files.join(folder, story.REPORT)):
        print(f"{folder}: complete; the report is {files.join(folder, story.REPORT)}")
        return
    Quickstart(folder, sizes).run()


def check_folder(folder: str, stage_files: Mapping[str, str]) -> None:
    """Refuses a folder that no quickstart began, and stages that are not the quickstart's any more.

    Raises:
        ValueError: if it is one; says what to do.
    """
    there = files.names(folder) if files.is_folder(folder) else []
    begun = [name for name in stage_files if name in there]
    if there and not begun:
        raise ValueError(
            f"{folder}: expected what an earlier quickstart left, or nothing, found "
            f"{', '.join(there[:10])}: choose another folder with --out"
        )
    for name in begun:
        path = files.join(folder, name)
        if files.read_text(path) != stage_files[name]:
            raise ValueError(
                f"{path}: differs from what this quickstart writes: it was edited, moved here from "
                f"another folder, or written by another version. Train it by `astrollava train "
                f"{path}`, or begin a quickstart in another folder with --out"
            )


class Quickstart:
    """The job as a sequence of chapters, each timed and told."""

    def __init__(self, folder: str, sizes: recipe.Sizes):
        self.folder, self.sizes = folder, sizes
        self.console = Console(soft_wrap=True)
        self.facts = story.Facts(cores=os.cpu_count() or 1)

    def run(self) -> None:
        """All chapters in order."""
        self._prepare()
        self._stage("stage0", "stand-ins for the tower and the decoder")
        self._keep_parts()
        held_out = self._held_out()
        self._evaluate("before stage 1", self._fresh(), held_out, "caption")
        self._stage("stage1", "projector alone")
        model = load_model(self._path("runs", "stage1"), "float32")
        self._evaluate("after stage 1", model, held_out, "caption")
        self._evaluate("before stage 2", model, held_out, "asked")
        self._stage("stage2", "decoder and projector")
        model = load_model(self._path("runs", "stage2"), "float32")
        self._evaluate("after stage 2", model, held_out, "asked")
        self._evaluate("after stage 2", model, held_out, "caption")
        self._export(held_out)
        self._ask(model, held_out)
        path = self._path(story.REPORT)
        story.write(path, self.facts)
        self.console.print(f"report: {path}  ({self.facts.all_seconds:.0f} s)")
        if self.facts.comparison is not None and not self.facts.comparison.equal:
            raise RuntimeError(f"{self._path('export')}: {self.facts.comparison}")

    def _path(self, *parts: str) -> str:
        return files.join(self.folder, *parts)

    @contextlib.contextmanager
    def _chapter(self, name: str, what: str) -> Iterator[None]:
        """Times what happens in it, that of earlier starts added."""
        self.console.rule(f"{name}: {what}", align="left")
        kept = self._path("runs", "seconds.json")
        before = files.read_json(kept) if files.exists(kept) else {}
        began = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - began
            self.facts.seconds = before | {name: before.get(name, 0.0) + elapsed}
            files.write_json(kept, self.facts.seconds)
        gc.collect()

    def _prepare(self) -> None:
        """The stages' files, pictures with their words, and the small model's shape."""
        for name, text in recipe.stage_files(self.folder, self.sizes).items():
            files.write_text(self._path(name), text)
            load(RunConfig, self._path(name))  # a path that YAML cannot hold shows here
        sizes = self.sizes
        with self._chapter("sky", "drawing pictures with their words"):
            self._sky("parts/sky", "train", recipe.STAGE0_SEED, sizes.stage0_pictures)
            self._sky("data/train", "train", recipe.STAGE1_SEED, sizes.train_pictures)
            self._sky("data/heldout", "heldout", recipe.HELD_OUT_SEED, sizes.held_out_pictures)
        initial = self._path("parts", "initial")
        files.write_json(files.join(initial, "config.json"), recipe.initial_config())
        files.write_json(files.join(initial, "preprocessor_config.json"), recipe.image_processor())
        for name, content in tokenizer_files().items():
            files.write_bytes(files.join(initial, name), content)

    def _sky(self, where: str, split: str, seed: int, count: int) -> None:
        path = self._path(*where.split("/"))
        if files.exists(path):
            return
        made = examples(seed, count, size=recipe.IMAGE_SIZE, workers=self.facts.cores)
        info = write_set(path, made, name="simulated_sky", split=split)
        self.console.print(f"{path}: {info.num_examples} pictures")

    def _stage(self, name: str, what: str) -> None:
        with self._chapter(name, what):
            train(load(RunConfig, self._path(f"{name}.yaml")))
        self.facts.logs[name] = read_log(self._path("runs", name, "log.jsonl"))

    def _keep_parts(self) -> None:
        """Stage 0's tower and decoder as directories of their own; its projector goes."""
        source = open_any(self._path("runs", "stage0")).source
        for part, layout in (("vision", "tower"), ("llm", "decoder")):
            if not files.exists(self._path("parts", part)):
                save(self._path("parts", part), layout, source)

    def _held_out(self) -> list[Example]:
        source = TFRecordSource(self._path("data", "heldout"))
        return [example.decode(source[number]) for number in range(len(source))]

    def _fresh(self) -> Model:
        """The model as stage 1 finds it: its projector made from the seed."""
        run = load(RunConfig, self._path("stage1.yaml"))
        return untrained(run)

    def _evaluate(self, when: str, model: Model, held_out: list[Example], way: str) -> None:
        with self._chapter(f"{when}, {way}", "held-out questions"):
            found = examine(model, held_out, way)
        told = story.Told(
            when,
            way,
            {result.name: result.accuracy for result in found.results},
            HEADER,
            [result.row() for result in found.results],
            found.answers,
        )
        self.facts.told.append(told)
        self.facts.held_out = held_out
        self.console.print(table(found.results), highlight=False)

    def _export(self, held_out: list[Example]) -> None:
        """Weights for PyTorch, loaded there, and compared."""
        target = self._path("export")
        with self._chapter("export", "weights for PyTorch"):
            if not files.exists(target):
                convert(self._path("runs", "stage2"), target, "hf")
            pictures = [e.images[0] for e in held_out[:PROBES]]
            self.facts.comparison = compare_with_torch(target, pictures)
            self.console.print(str(self.facts.comparison or story.NOT_COMPARED))

    def _ask(self, model: Model, held_out: list[Example]) -> None:
        """One question about one picture, as `astrollava ask` does it."""
        shown, question = held_out[0], QUESTIONS["kind"].text
        files.write_bytes(self._path("samples", "first.png"), shown.images[0])
        answer = model.generate([shown.images[0]], [question], max_new_tokens=ANSWER_TOKENS)[0]
        truth = QUESTIONS["kind"].truth(scene_of(shown.id)) or ""
        self.facts.asked = (shown.images[0], question, truth, answer)
        self.console.print(f"{question}  {answer}  (it is: {truth})", highlight=False)


def untrained(run: RunConfig) -> Model:
    """The model that a run begins with, what is fresh in it made from the run's seed."""
    opened = open_init(run.init)
    described = describe(run, opened.source.config)
    placed = placements(described.axes, described.shapes, run.mesh.build())
    names = fresh_addresses(run, described, opened)
    made = make_fresh(run, described, names, placed)
    fresh = {a: np.asarray(x) for a, x in made.items()}
    source = Overlay(opened.source, fresh, run.out)
    changed = {**opened.changed, **fresh}
    opened = dataclasses.replace(opened, source=source, changed=changed)
    return to_answer(opened, run.out, "float32")


def examine(model: Model, held_out: list[Example], way: str) -> Evaluation:
    """Closed questions about all pictures, asked, or read from captions."""
    captions = way == "caption"
    if captions:
        model = dataclasses.replace(model, template="plain")
    length = CAPTION_TOKENS if captions else ANSWER_TOKENS

    def answer(images: list, prompts: list[str]) -> list[str]:
        return model.generate(images, prompts, max_new_tokens=length)

    questions = []
    for shown in held_out:
        scene = scene_of(shown.id)
        questions.append(
            [
                Question(
                    name,
                    "" if captions else closed.text,
                    truth,
                    closed.read_caption if captions else closed.read_answer,
                )
                for name, closed in QUESTIONS.items()
                if (truth := closed.truth(scene)) is not None
            ]
        )
    pictures = [shown.images[0] for shown in held_out]
    return evaluate(answer, pictures, questions)


def compare_with_torch(export: str, pictures: list[bytes]) -> story.Comparison | None:
    """Loads an export in transformers: how far its logits are from ours; None without torch."""
    try:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration
    except ImportError:
        return None
    question = f"<image>\n{QUESTIONS['kind'].text}"
    ours = load_model(export, "float32").logits(pictures, [question] * len(pictures))
    processor = AutoProcessor.from_pretrained(export)
    theirs = LlavaForConditionalGeneration.from_pretrained(export, dtype=torch.float32).eval()
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    inputs = processor(images=opened, text=[question] * len(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    difference = np.abs(ours - expected).max() / np.abs(expected).max()
    return story.Comparison(float(difference), len(pictures))
