"""The house rules that a machine can hold: who imports whom, what is light, what stays small."""

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import astrollava_jax
import data_prep
from astrollava_jax.cli.main import COMMANDS

PACKAGE = Path(astrollava_jax.__file__).parent
DATA_PREP = Path(data_prep.__file__).parent
ROOT = PACKAGE.parent

GROUND = {"config", "files", "ranges", "locks", "checksums", "batch", "params", "meshing"}
GROUND |= {"chips", "compiler", "sharding", "report"}
MIDDLE = {"training", "inference", "planning", "quickstart", "bench"}

MAY_IMPORT = {
    "ranges": set(),
    "locks": set(),
    "files": {"ranges", "locks"},
    "checksums": {"files"},
    "batch": set(),
    "params": set(),
    "chips": set(),
    "compiler": set(),
    "config": {"files"},
    "meshing": set(),
    "sharding": {"config", "meshing"},
    "report": {"files"},
    "models": GROUND,
    "data": GROUND,
    "weights": GROUND | {"models", "data"},
    **dict.fromkeys(MIDDLE, GROUND | {"models", "data", "weights"}),
    "bench": GROUND | {"models", "data", "weights", "training", "quickstart"},  # what it measures
    "run": GROUND | {"models", "data", "weights"} | MIDDLE,
    "cli": {"config", "run"},
    "__init__": {"run"},
    "__main__": {"cli"},
}
"""Room -> the rooms that it may import besides itself."""

DATA_PREP_MAY_IMPORT = (
    "data.example",
    "data.faults",
    "data.tfrecord",
    "data.image",
    "files",
    "report",
    "quickstart",
)

HEAVY = ("jax", "numpy", "flax", "transformers", "grain", "yaml", "pydantic", "PIL", "rich")
"""What no one should wait for who only wants to read the help."""

LONGEST_FILE, LONGEST_FUNCTION = 300, 60

FILES = sorted([*PACKAGE.rglob("*.py"), *DATA_PREP.rglob("*.py")])


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with the names taken from packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole) else str(node.module)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def own_imports(path: Path) -> list[str]:
    """The modules of this package that a file imports, without its name in front."""
    names = imported(ast.parse(path.read_text()))
    prefix = "astrollava_jax."
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_room_imports_one_above_it():
    faults = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        allowed = MAY_IMPORT[room] | {room}
        for name in own_imports(path):
            if name.split(".")[0] not in allowed:
                faults.append(f"{name_of(path)} imports {name}")
    assert not faults, "\n".join(faults)


def test_the_table_of_rooms_is_not_idle():
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name[0] != "_"}
    assert rooms <= set(MAY_IMPORT)
    for room, allowed in MAY_IMPORT.items():
        assert all(room not in MAY_IMPORT[below] for below in allowed), f"{room}: a circle"


def test_data_preparation_knows_only_records():
    faults = [
        f"{name_of(path)} imports {name}"
        for path in sorted(DATA_PREP.rglob("*.py"))
        for name in own_imports(path)
        if not any(f"{name}.".startswith(f"{room}.") for room in DATA_PREP_MAY_IMPORT)
    ]
    assert not faults, "\n".join(faults)


def test_no_two_modules_import_each_other():
    below = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): own_imports(path)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def walk(name: str, chain: tuple[str, ...]) -> None:
        assert name not in chain, f"a circle of imports: {' -> '.join((*chain, name))}"
        if name not in done:
            for other in below.get(name, ()):
                walk(other, (*chain, name))
            done.add(name)

    for name in below:
        walk(name, ())


def test_data_never_names_jax():
    faults = [
        f"{name_of(path)} imports {name}"
        for path in [PACKAGE / "batch.py", *sorted((PACKAGE / "data").rglob("*.py"))]
        for name in imported(ast.parse(path.read_text()))
        if name.split(".")[0] in ("jax", "flax", "optax", "orbax")
    ]
    assert not faults, "\n".join(faults)


def test_importing_data_wakes_no_backend():
    # There is no such platform: whoever starts a backend fails, as the last line shows.
    names = [module.name for module in pkgutil.iter_modules([str(PACKAGE / "data")])]
    lines = [f"import astrollava_jax.data.{name}" for name in names]
    lines += ["import jax", "try: jax.devices()", "except RuntimeError: print('asleep')"]
    assert answer(lines, JAX_PLATFORMS="nowhere") == "asleep"


@pytest.mark.parametrize("module", ["astrollava_jax", "astrollava_jax.cli.main"])
def test_the_front_door_is_light(module):
    assert answer([f"import {module}", *SHOW_HEAVY]) == "[]"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_is_light(command):
    lines = [
        "import contextlib, io",
        "from astrollava_jax.cli.main import main",
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):",
        f"    main([{command!r}, '--help'])",
        *SHOW_HEAVY,
    ]
    assert answer(lines) == "[]"


SHOW_HEAVY = ["import sys", f"print([name for name in {HEAVY} if name in sys.modules])"]


def answer(lines: list[str], **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_room_says_what_belongs_there():
    rooms = [PACKAGE, DATA_PREP, *(path.parent for path in PACKAGE.glob("*/__init__.py"))]
    for room in rooms:
        name = ".".join(room.relative_to(ROOT).parts)
        said = importlib.import_module(name).__doc__ or ""
        assert len(said.split()) > 10, f"{name}: its docstring does not say what belongs there"


def test_only_files_opens_paths():
    faults = []
    for path in FILES:
        if path == PACKAGE / "files.py":
            continue
        tree = ast.parse(path.read_text())
        opened = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "open"
        ]
        faults += [f"{name_of(path)}:{line} calls open" for line in opened]
        faults += [
            f"{name_of(path)} imports {name}"
            for name in imported(tree)
            if name in ("shutil", "tempfile", "glob", "pathlib")
        ]
    assert not faults, "\n".join(faults)


def test_files_and_functions_are_small():
    faults = []
    for path in FILES:
        text = path.read_text()
        if (count := len(text.splitlines())) > LONGEST_FILE:
            faults.append(f"{name_of(path)}: {count} lines, at most {LONGEST_FILE}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                if count > LONGEST_FUNCTION:
                    where = f"{name_of(path)}:{node.lineno}"
                    faults.append(f"{where} {node.name}: {count} lines, at most {LONGEST_FUNCTION}")
    assert not faults, "\n".join(faults)
