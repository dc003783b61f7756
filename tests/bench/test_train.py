"""The bench of training: a very small model in all programs, and that it sees what is wrong."""

import dataclasses
import multiprocessing
import time

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlavaForConditionalGeneration

from astrollava_jax import files
from astrollava_jax.bench import (
    processor_time,
    random_llava,
    train,
    train_found,
    train_job,
    train_theirs,
)
from astrollava_jax.bench.train_found import RATIOS, Found, apart, faults, told
from astrollava_jax.bench.train_job import SHAPES, Job
from astrollava_jax.bench.turns import Program, Turn
from astrollava_jax.cli.main import MISTAKE
from astrollava_jax.cli.main import main as astrollava

JOB = Job("", "tiny", 1, "llava", 4, None, 256, 2, "float32", 4, None, 0, 1)
FACTS = {
    "ours": {
        "platform": "cpu", "peak_flops": None, "samples": 8, "tokens": 400, "steps": 2,
        "useful_flops": 2e9, "trained": 7,
    },
    "padded": {"trained": 7},
    "packed": {"trained": 7},
}  # fmt: skip


def found(ours, padded, losses=(5.0, 4.0)):
    """Programs that took these seconds of processors in each turn, on the clock half of them."""

    def turns(seconds, losses):
        return [Turn(s / 2, s, [loss]) for s, loss in zip([9.0, *seconds], losses)]

    made = {"ours": turns(ours, (5.0, 4.0, 3.0)), "padded": turns(padded, losses)}
    return Found(1, made, FACTS, {name: 10**9 for name in made})


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_all_programs_have_the_same_losses(stage, tmp_path, capsys):
    options = ["--shape", "tiny", "--turns", "1", "--steps", "2", "--stage", str(stage)]
    assert train.main([*options, "--work", str(tmp_path), "--micro", "3"]) == 0
    said = capsys.readouterr().out
    assert "losses are as they must be" in said and "token for token" in said
    summary = files.read_json_object(tmp_path / f"train-tiny-{stage}.json")
    assert set(summary["turns"]) == set(train.KINDS)
    losses = {name: [t["losses"] for t in turns] for name, turns in summary["turns"].items()}
    assert np.shape(losses["ours"]) == (2, 2)
    for name in train.KINDS:
        np.testing.assert_allclose(losses[name], losses["ours"], rtol=train_found.TOLERANCE)
    assert np.all(np.diff(np.ravel(losses["ours"])) != 0)


def test_ratios_are_taken_within_turns():
    used = found(ours=[2.0, 4.0], padded=[3.0, 2.0], losses=(5.0, 4.0, 3.0))
    assert used.ratios(RATIOS[0], clock=False) == [1.5, 0.5]
    assert used.per_step("ours", clock=True) == [1.0, 2.0]
    assert used.ratios(RATIOS[1], clock=False) == []


def test_the_table_says_what_is_reached():
    lines = told(found([2.0], [3.0]), JOB, {"ours": "ours", "padded": "theirs"})
    used = next(line for line in lines if "as used" in line)
    assert "1.500  (1.500 to 1.500)" in used and used.endswith("to reach: 1.1, reached")
    slow = told(found([3.0], [3.0]), JOB, {"ours": "ours", "padded": "theirs"})
    assert any(line.endswith("to reach: 1.1, NOT reached") for line in slow)
    ours = next(line for line in lines if line.startswith("  ours"))
    assert ours.split()[-4:] == ["4.00", "200", "1.0", "1.0"]


def test_losses_that_differ_are_told():
    assert faults(found([1.0], [1.0], (5.0, 4.0001)), JOB) == []
    wrong = found([1.0], [1.0], (5.0, 4.01))
    assert apart(wrong, "padded") == pytest.approx(0.01 / 4.01)
    assert "padded: losses differ from ours by 0.0025" in faults(wrong, JOB)[0]
    lower = dataclasses.replace(JOB, precision="bfloat16")
    assert faults(wrong, lower) == []
    burst = found([1.0], [1.0], (5.0, float("inf")))
    assert faults(burst, lower) == ["padded: expected finite losses, found [5.0, inf]"]
    assert faults(found([1.0], [1.0], (5.0, float("nan"))), JOB)


class Stub(Program):
    """A program on a GPU; `packed` finds no memory in its second turn."""

    def __init__(self, arguments, variables):
        self._name = arguments[2] if "--platform" in arguments else "ours"
        self.facts = FACTS[self._name] | {"platform": "gpu"}
        self._turns = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def take(self, steps):
        self._turns += 1
        if self._name == "packed" and self._turns == 2:
            raise ValueError("no memory")
        return Turn(1.0, 2.0, [5.0] * steps)

    def most_resident(self):
        return 10**9


def test_on_a_gpu_a_program_that_fails_is_told_and_takes_nothing_along(monkeypatch):
    monkeypatch.setattr(train, "Program", Stub)
    kept = []
    names = ["ours", "packed", "padded"]
    made = train.measured(JOB, names, 1, 2, lambda found: kept.append(list(found.turns)))
    assert kept == [["ours"], ["ours"], ["ours", "padded"]]
    assert [len(turns) for turns in made.turns.values()] == [2, 2]
    assert faults(made, JOB) == ["packed: not measured: no memory"]
    assert made.ratios(RATIOS[0], clock=True) == [1.0] and not made.ratios(RATIOS[1], clock=True)


def test_both_clocks_of_a_processor_must_show_what_is_to_be_reached():
    slow = found([2.0], [3.0])
    slow.turns["padded"][1] = dataclasses.replace(slow.turns["padded"][1], seconds=1.05)
    lines = told(slow, JOB, {"ours": "ours", "padded": "theirs"})
    assert any(line.endswith("to reach: 1.1, NOT reached") for line in lines)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.txt").write_text("mine")
    job = dataclasses.replace(JOB, folder=str(tmp_path / "job"))
    with pytest.raises(ValueError, match="job: expected a new folder, or one that a bench"):
        train_job.write(job, "full")
    assert (tmp_path / "job" / "mine.txt").exists()


def test_the_time_of_a_worker_that_has_ended_is_still_counted():
    worker = multiprocessing.get_context("spawn").Process(target=busy)
    before = processor_time.tree_seconds()
    worker.start()
    worker.join()
    assert processor_time.tree_seconds() - before >= BUSY


BUSY = 0.3


def busy() -> None:
    while time.process_time() < BUSY:
        pass


def test_another_number_of_parameters_is_told():
    other = dataclasses.replace(found([1.0], [1.0]), facts=FACTS | {"padded": {"trained": 8}})
    assert faults(other, JOB) == ["padded: trains 8 numbers, ours 7"]


def test_labels_stand_where_the_learned_token_does():
    targets = np.array([[7, 8, 9, 0], [1, 2, 3, 0]])
    index = np.array([[0, 2, -1], [1, -1, -1]])
    expected = [[-100, 7, -100, 9], [-100, -100, 2, -100]]
    assert train_job.labels(targets, index).tolist() == expected


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_the_model_is_one_of_transformers(name, tmp_path):
    size = SHAPES[name].size
    files.write_json(tmp_path / "config.json", random_llava.config(size))
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    expected = sorted(tuple(value.shape) for value in model.parameters())
    shapes = random_llava.tensors(size)
    assert sorted(shapes.values()) == expected
    if name == "smollm2":  # SmolLM2-135M, as counted in its files on the hub
        decoder = [shape for tensor, shape in shapes.items() if tensor.startswith("language_model")]
        assert sum(map(np.prod, decoder)) == 134_515_008


PROGRAM = """
import sys
from astrollava_jax.bench.turns import asked

with asked() as answer:
    print("what a library prints")
    if sys.argv[1:]:
        raise ValueError("install it")
    numbers = iter(range(5))
    answer({"name": "counting"}, lambda: 0.5 + next(numbers))
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "counting.py").write_text(PROGRAM)
    return {"PYTHONPATH": f"{tmp_path}:{files.absolute('.')}"}


def test_a_program_takes_the_steps_that_it_is_asked_for(program):
    with Program(["counting"], program) as counting:
        assert counting.facts == {"name": "counting"}
        assert counting.take(2).losses == [0.5, 1.5]
        assert counting.take(1).losses == [2.5] and counting.most_resident() > 0
        with pytest.raises(RuntimeError, match="counting: ended with 1"):
            counting.take(3)


def test_a_mistake_that_a_program_tells_is_the_users(program):
    with pytest.raises(ValueError, match="install it"):
        Program(["counting", "wrong"], program)


def test_samples_of_a_step_in_parts():
    assert train_job.in_parts([4, 5, 6], 2) == [[4, 5], [6]]
    assert train_job.in_parts([4, 5, 6], None) == [[4, 5, 6]]


def test_a_step_has_samples_or_rows(tmp_path, capsys):
    work = str(tmp_path / "work")
    with pytest.raises(SystemExit) as left:
        astrollava(["bench", "train", "--work", work, "--samples", "4", "--rows", "3"])
    assert left.value.code == MISTAKE and "not allowed with" in capsys.readouterr().err
    assert not files.exists(work)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_theirs_computes_a_frozen_tower_once_and_the_decoder_again(tmp_path):
    """Forward and backward calls of a product in each; their checkpoints are those of a decoder."""
    job = dataclasses.replace(JOB, folder=str(tmp_path / "job"))
    train_job.write(job, "full")
    patches, side = SHAPES["tiny"].size.patches, SHAPES["tiny"].size.image
    words = torch.tensor([[1, *[SHAPES["tiny"].size.image_id] * patches, 5, 6, 7]])
    batch = {"input_ids": words, "labels": words.clone(), "attention_mask": torch.ones_like(words)}
    batch["pixel_values"] = torch.ones(1, 3, side, side)
    trainer = train_theirs.Trainer(job, iter([[batch]]), "cpu", False)
    products = {
        "tower": trainer.model.model.vision_tower.get_submodule("encoder.layers.0.mlp.fc1"),
        "decoder": trainer.model.model.language_model.layers[0].mlp.gate_proj,
    }
    calls = []
    for name, product in products.items():
        product.register_forward_hook(lambda *_, name=name: calls.append((name, "forward")))
        product.register_full_backward_hook(lambda *_, name=name: calls.append((name, "backward")))
    trainer.step()
    counted = {call: calls.count(call) for call in calls}
    assert counted == {
        ("tower", "forward"): 1, ("decoder", "forward"): 2, ("decoder", "backward"): 1,
    }  # fmt: skip
