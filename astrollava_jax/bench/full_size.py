"""Proves the whole at full size on a small machine: 7 billion numbers, in and out and through.

    python -m astrollava_jax.bench.full_size --work DIR [--steps write,import,export,forward]

write     LLaVA-1.5-7B with random numbers, 14 GB, as on the hub
import    `astrollava convert` to our own layout, and the memory that it holds
export    back to the layouts hf and llava: every tensor the same in name, dtype, shape and bytes
forward   scores at 600 positions beside those of transformers, in bfloat16 and in float32

Every figure is a line, and all of them stand in DIR/full_size.json, to which a step that is run by
itself adds. DIR must be new, or this program's own: what lies there is written anew. It needs 45
GB, the machine 18 GB of free memory. Linux only; needs the extra `dev`.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from astrollava_jax import files
from astrollava_jax.bench import command, random_llava
from astrollava_jax.bench.forward import DTYPES
from astrollava_jax.bench.memory import Used, machine, measured
from astrollava_jax.bench.random_llava import FULL, TINY, Size, Written
from astrollava_jax.weights.directory import open_model

SUMMARY = "full_size.json"
MOST_HELD = 1.3
"""Memory that a conversion may hold, in largest pieces."""
LEAST_COSINE = 0.999
"""Of the scores of both programs at each position, in float32 and in bfloat16."""
TOLERANCE = 1e-4
"""How far scores in float32 may be apart, of the largest."""
PROGRAMS = ("transformers", "jax")
_LIBRARIES = ("jax", "flax", "orbax-checkpoint", "numpy", "torch", "transformers", "safetensors")

Facts = dict[str, Any]


def write(work: str, size: Size) -> Facts:
    """Writes the model, and beside it what its files must hold."""
    files.remove(files.join(work, "hf"))
    written = random_llava.write(files.join(work, "hf"), size)
    files.write_json(files.join(work, "written.json"), {n: t._asdict() for n, t in written.items()})
    numbers = sum(int(np.prod(tensor.shape)) for tensor in written.values())
    return {"tensors": len(written), "parameters": numbers, "gb": 2 * numbers / 1e9}


def import_(work: str, size: Size) -> Facts:
    """Converts it to our layout, and compares the memory held with the largest parameter."""
    largest = _largest(files.join(work, "hf"))
    facts = _converted(files.join(work, "hf"), files.join(work, "orbax"), "orbax").facts
    base = facts["held_gb"] if size == TINY else _base(work)
    return _judged({"base_gb": base} | facts, largest, size)


def export(work: str, size: Size) -> Facts:
    """Converts it back, to one layout after the other; no two of the copies are on the disk."""
    written = _written(work)
    wanted = {"hf": written, "llava": random_llava.in_original_layout(written, size)}
    largest = _largest(files.join(work, "hf"))
    found: Facts = {}
    for layout, tensors in wanted.items():
        target = files.join(work, f"again_{layout}")
        facts = _converted(files.join(work, "orbax"), target, layout).facts
        facts |= {"tensors": len(tensors), "faults": differences(target, tensors)}
        files.remove(target)
        found[layout] = _judged(facts, largest, size)
    return found


def forward(work: str, size: Size) -> Facts:
    """The passes by each program, one after the other, and how far apart their scores are."""
    found: Facts = {}
    for program in PROGRAMS:
        out, model = files.join(work, f"forward_{program}"), files.join(work, "hf")
        used = measured(["astrollava_jax.bench.forward", program, model, out])
        found[program] = used.facts | files.read_json_object(files.join(out, "facts.json"))
    return found | compared_programs(work)


def compared_programs(work: str) -> Facts:
    """What the scores of both programs say.

    In float32 they must be the same. In bfloat16 each program rounds in its own way: there the
    distance of each from the float32 of transformers is measured.
    """
    scores = {}
    for program in PROGRAMS:
        for dtype in DTYPES:
            path = files.join(work, f"forward_{program}", f"{dtype}.npy")
            with files.open_read(path) as handle:
                scores[program, dtype] = np.load(handle)
    true = scores["transformers", "float32"]
    found = {
        "float32": compared(scores["jax", "float32"], true),
        "bfloat16": compared(scores["jax", "bfloat16"], scores["transformers", "bfloat16"]),
        "rounding_jax": compared(scores["jax", "bfloat16"], true),
        "rounding_transformers": compared(scores["transformers", "bfloat16"], true),
    }
    return found | {"faults": judged_scores(found["float32"], found["bfloat16"])}


def judged_scores(same: Facts, rounded: Facts) -> list[str]:
    """What is wrong with the scores of both programs, in float32 and in bfloat16."""
    faults = [
        f"{name}: least cosine {scores['least_cosine']}, expected {LEAST_COSINE}"
        for name, scores in (("float32", same), ("bfloat16", rounded))
        if not scores["least_cosine"] >= LEAST_COSINE
    ]
    if not same["largest_difference"] <= TOLERANCE * same["largest_score"]:
        faults.append(
            f"float32: differs by {same['largest_difference']}, expected at most {TOLERANCE} of "
            f"{same['largest_score']}"
        )
    return faults


STEPS: dict[str, Callable[[str, Size], Facts]] = {
    "write": write,
    "import": import_,
    "export": export,
    "forward": forward,
}


def compared(ours: np.ndarray, theirs: np.ndarray) -> Facts:
    """How far apart two sets of scores are, position by position.

    Raises:
        ValueError: if they are of different shapes.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"scores: expected {list(theirs.shape)}, found {list(ours.shape)}")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = (ours * theirs).sum(axis=1) / lengths
    return {
        "positions": len(ours),
        "words": ours.shape[1],
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "rms_difference": float(np.sqrt(np.square(ours - theirs).mean())),
        "largest_score": float(np.abs(theirs).max()),
        "same_best_word": float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()),
    }


def _converted(source: str, target: str, layout: str) -> Used:
    files.remove(target)
    return measured(["astrollava_jax", "convert", source, target, "--layout", layout])


def _base(work: str) -> float:
    """What the same conversion holds for a model of no size: interpreter, libraries, threads."""
    model = files.join(work, "tiny_hf")
    files.remove(model)
    random_llava.write(model, TINY)
    return _converted(model, files.join(work, "tiny_orbax"), "orbax").held_bytes / 1e9


def _largest(folder: str) -> float:
    """The bytes of the largest parameter of ours, whose layers are stacked, in GB."""
    infos = open_model(folder).shapes.values()
    return max(int(np.prod(info.shape)) * info.dtype.itemsize for info in infos) / 1e9


def _judged(facts: Facts, largest: float, size: Size) -> Facts:
    """The facts with the memory held in largest pieces; a tiny model's drown in the base."""
    ratio = facts["held_gb"] / largest
    faults = facts.pop("faults", [])
    if size == FULL and ratio > MOST_HELD:
        faults.append(f"holds {ratio:.2f} largest pieces, expected at most {MOST_HELD}")
    return facts | {"largest_piece_gb": largest, "held_in_largest": ratio, "faults": faults}


def _written(work: str) -> dict[str, Written]:
    tree = files.read_json_object(files.join(work, "written.json"))
    return {name: Written(**tensor) for name, tensor in tree.items()}


def differences(folder: str, wanted: Mapping[str, Written]) -> list[str]:
    """Where a folder's tensors, as safetensors itself reads them, are not the wanted ones."""
    import torch
    from safetensors import safe_open

    faults, missing = [], dict(wanted)
    for name in files.names(folder, r".*\.safetensors"):
        with safe_open(files.join(folder, name), framework="pt") as opened:
            for tensor in opened.keys():  # noqa: SIM118
                array = opened.get_tensor(tensor)
                expected = missing.pop(tensor, None)
                found = array.dtype, list(array.shape)
                if expected is None:
                    faults.append(f"{tensor}: was not written, or stands there twice")
                elif found != (torch.bfloat16, expected.shape):
                    faults.append(f"{tensor}: expected bfloat16 {expected.shape}, found {found}")
                elif random_llava.digest(array.view(torch.int16).numpy()) != expected.sha256:
                    faults.append(f"{tensor}: other bytes")
    return faults + [f"{tensor}: missing" for tensor in missing]


def _told(step: str, facts: Mapping[str, Any], name: str = "") -> list[str]:
    """One line per figure; a list counts its items."""
    lines = []
    for key, value in facts.items():
        full = f"{name}{key}"
        if isinstance(value, Mapping):
            lines += _told(step, value, f"{full}.")
        else:
            shown = len(value) if isinstance(value, list) else value
            lines.append(f"{step:<8} {full:<34} {shown}")
    return lines


def _faults(facts: Mapping[str, Any]) -> list[str]:
    inner = [
        fault for value in facts.values() if isinstance(value, Mapping) for fault in _faults(value)
    ]
    return inner + list(facts.get("faults", []))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps; 0 where every figure is as it must be, else 1."""
    parser = command.parser("full_size", __doc__, "where the models are written")
    parser.add_argument(
        "--steps", type=command.some_of(STEPS), default=",".join(STEPS), help="some, in this order"
    )
    parser.add_argument("--tiny", action="store_true", help="the same run with a very small model")
    arguments = parser.parse_args(argv)
    size, work = TINY if arguments.tiny else FULL, command.own_folder(arguments.work)
    path = files.join(work, SUMMARY)
    summary: Facts = files.read_json_object(path) if files.exists(path) else {}
    summary["machine"] = machine()
    summary["versions"] = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES
    }
    faults = []
    for step in arguments.steps:
        summary[step] = STEPS[step](work, size)
        print("\n".join(_told(step, summary[step])), flush=True)
        files.write_json(path, summary)
        faults += [f"{step}: {fault}" for fault in _faults(summary[step])]
    return command.ended(faults, path)


if __name__ == "__main__":
    sys.exit(main())
