"""`quickstart`: the whole job on a simulated sky, from nothing to a report, on this machine."""

import contextlib
import dataclasses
import gc
import io
import os
import time
from collections.abc import Iterator

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
from astrollava_jax.run.directory import open_any, open_init
from astrollava_jax.run.model import load_model, to_answer
from astrollava_jax.run.stage import describe
from astrollava_jax.run.train import make_fresh, train
from astrollava_jax.sharding import placements
from astrollava_jax.training.metrics import read_log
from astrollava_jax.weights.save import save
from astrollava_jax.weights.source import Overlay

ANSWER_TOKENS, CAPTION_TOKENS = 16, 48
OURS = ("data", "export", "parts", "report.html", "runs", "samples")
"""What a quickstart leaves, beside the files of its stages."""

PROBES = 3
"""Pictures on which the export is compared with PyTorch."""


def quickstart(out: str) -> None:
    """Does the whole job below `out`; what is finished there is not done again.

    Raises:
        ValueError: if `out` holds something else, or a stage whose file was changed.
    """
    folder = files.absolute(out)
    check_free(folder)
    Quickstart(folder).run()


def check_free(folder: str) -> None:
    """Refuses a folder with something else in it, and stage files that were changed.

    Raises:
        ValueError: if there are any; says what to do.
    """
    if not files.is_folder(folder):
        return
    ours = {*OURS, *(f"{name}.yaml" for name in recipe.STAGES)}
    foreign = [name for name in files.names(folder) if name not in ours]
    if foreign:
        raise ValueError(
            f"{folder}: expected what an earlier quickstart left, or nothing, found "
            f"{', '.join(foreign[:10])}: choose another folder with --out"
        )
    for name, text in recipe.STAGES.items():
        path = files.join(folder, f"{name}.yaml")
        if files.exists(path) and files.read_text(path) != text.format(folder=folder):
            raise ValueError(
                f"{path}: is not the quickstart's file any more, and would be overwritten: give "
                "yours another name, its run another `out`, and train it by `astrollava train`"
            )


class Quickstart:
    """The job as a sequence of chapters, each timed and told."""

    def __init__(self, folder: str):
        self.folder = folder
        self.console = Console(soft_wrap=True)
        self.facts = story.Facts(folder=folder, cores=os.cpu_count() or 1)

    def run(self) -> None:
        """All chapters in order."""
        began = time.perf_counter()
        self._prepare()
        self._stage("stage0", "stand-ins for the tower and the decoder")
        self._keep_parts()
        held_out = self._held_out()
        self._evaluate("before stage 1", self._fresh(), held_out, "caption", shuffled=False)
        self._stage("stage1", "projector alone")
        stage1 = self._path("runs", "stage1")
        self._evaluate("after stage 1", load_model(stage1, "float32"), held_out, "caption")
        before = load_model(stage1, "float32")
        self._evaluate("before stage 2", before, held_out, "asked", shuffled=False)
        self._stage("stage2", "decoder and projector")
        model = load_model(self._path("runs", "stage2"), "float32")
        self._evaluate("after stage 2", model, held_out, "asked")
        self._evaluate("after stage 2", model, held_out, "caption", shuffled=False)
        self._export(held_out)
        self._ask(model, held_out)
        self.facts.seconds["all"] = time.perf_counter() - began
        path = self._path("report.html")
        story.write(path, self.facts)
        self.console.print(f"report: {path}  ({self.facts.seconds['all']:.0f} s)")

    def _path(self, *parts: str) -> str:
        return files.join(self.folder, *parts)

    @contextlib.contextmanager
    def _chapter(self, name: str, what: str) -> Iterator[None]:
        self.console.rule(f"{name}: {what}", align="left")
        began = time.perf_counter()
        yield
        self.facts.seconds[name] = time.perf_counter() - began
        gc.collect()

    def _prepare(self) -> None:
        """Pictures, words and the small model's shape."""
        with self._chapter("sky", "drawing pictures with their words"):
            self._sky("parts/sky", "train", recipe.STAGE0_SEED, recipe.STAGE0_PICTURES)
            self._sky("data/train", "train", recipe.STAGE1_SEED, recipe.TRAIN_PICTURES)
            self._sky("data/heldout", "heldout", recipe.HELD_OUT_SEED, recipe.HELD_OUT_PICTURES)
        initial = self._path("parts", "initial")
        files.write_json(files.join(initial, "config.json"), recipe.initial_config())
        files.write_json(files.join(initial, "preprocessor_config.json"), recipe.image_processor())
        for name, content in tokenizer_files().items():
            files.write_bytes(files.join(initial, name), content)
        for name, text in recipe.STAGES.items():
            files.write_text(self._path(f"{name}.yaml"), text.format(folder=self.folder))

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
        for part, layout in (("vision", "clip"), ("llm", "llama")):
            if not files.exists(self._path("parts", part)):
                save(self._path("parts", part), layout, source)

    def _held_out(self) -> list[Example]:
        source = TFRecordSource(self._path("data", "heldout"))
        return [example.decode(source[number]) for number in range(len(source))]

    def _fresh(self) -> Model:
        """The model as stage 1 finds it: its projector made from the seed."""
        run = load(RunConfig, self._path("stage1.yaml"))
        return untrained(run)

    def _evaluate(
        self, when: str, model: Model, held_out: list[Example], way: str, *, shuffled: bool = True
    ) -> None:
        with self._chapter(f"{when}, {way}", "held-out questions"):
            found = examine(model, held_out, way, shuffled)
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
            self.facts.difference = compare_with_torch(target, pictures)
            self.console.print(self.facts.difference)

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
    fresh = {a: np.asarray(x) for a, x in make_fresh(run, described, placed).items()}
    source = Overlay(opened.source, fresh, run.out)
    changed = {**opened.changed, **fresh}
    opened = dataclasses.replace(opened, source=source, changed=changed)
    return to_answer(opened, run.out, "float32")


def examine(model: Model, held_out: list[Example], way: str, shuffled: bool) -> Evaluation:
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
    return evaluate(answer, pictures, questions, shuffle_seed=0 if shuffled else None)


def compare_with_torch(export: str, pictures: list[bytes]) -> str:
    """Loads an export in transformers and says how far its logits are from ours."""
    try:
        import torch
        from transformers import AutoProcessor, LlavaForConditionalGeneration
    except ImportError:
        return "torch is not installed: the export was written and not compared"
    question = f"<image>\n{QUESTIONS['kind'].text}"
    ours = load_model(export, "float32").logits(pictures, [question] * len(pictures))
    processor = AutoProcessor.from_pretrained(export)
    theirs = LlavaForConditionalGeneration.from_pretrained(export, dtype=torch.float32).eval()
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    inputs = processor(images=opened, text=[question] * len(pictures), return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    difference = np.abs(ours - expected).max() / np.abs(expected).max()
    verdict = "equal within 1e-4" if difference <= 1e-4 else "NOT EQUAL"
    return (
        f"logits of the export in transformers and here: {verdict} "
        f"(largest difference {difference:.1e} of the largest logit, {len(pictures)} pictures)"
    )
