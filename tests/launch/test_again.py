"""`launch/again.sh`: what is started again, how often, and how a signal comes to the command."""

import os
import pty
import signal
import subprocess

import pytest
from machines import ROOT, World, press_ctrl_c, read_until


@pytest.fixture
def world(tmp_path):
    """One whose `astrollava` is on the PATH of this machine."""
    world = World(tmp_path, workers=1)
    (tmp_path / "programs" / "astrollava").symlink_to(world.folder / "astrollava")
    return world


COMMAND = ("astrollava", "train", "my run.yaml", "--steps", "3 4")


def test_75_and_then_0(world):
    world.start(1, "exit 75")
    code, said = world.run("again.sh", *COMMAND)
    assert code == 0
    assert world.trained() == [list(COMMAND[1:])] * 2
    assert "again.sh: ended with 75; start 2 of at most 100 in 0.01 seconds" in said


def test_a_process_that_is_killed_is_started_again(world):
    world.start(1, "kill -KILL $$")
    code, said = world.run("again.sh", *COMMAND)
    assert code == 0 and "ended with 137; start 2" in said


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_goes_wrong_is_not_started_again(world, code):
    world.start(1, f"exit {code}")
    assert world.run("again.sh", *COMMAND)[0] == code
    assert len(world.trained()) == 1


def test_a_program_that_is_not_there_is_not_started_again(world):
    code, said = world.run("again.sh", "no such program")
    assert code == 127 and "start 2" not in said


def test_the_pauses_grow_and_the_starts_have_a_limit(world):
    for number in (1, 2, 3, 4):
        world.start(number, "exit 75")
    code, said = world.run("again.sh", *COMMAND, ASTROLLAVA_STARTS="4")
    assert code == 75
    assert [f"in {seconds} seconds" in said for seconds in (0.01, 0.02, 0.04, 0.08)] == [
        True, True, True, False,
    ]  # fmt: skip
    assert "ended with 75 at start 4, the last that is allowed" in said


def test_a_pause_is_never_longer_than_ten_minutes():
    words = "source launch/again.sh; longer 10; longer 299; longer 300; longer 600"
    done = subprocess.run(
        ["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["20", "598", "600", "600"]


@pytest.mark.parametrize("name", ["TERM", "HUP", "USR1"])
def test_a_signal_is_passed_on_once_and_nothing_is_started_again(world, name):
    world.start(
        1,
        f"""trap 'echo heard >>"$WORLD/heard"; exit 75' {name}
        echo "step 1"; while true; do sleep 0.05; done""",
    )
    process = world.begin("again.sh", *COMMAND)
    read_until(process, "step 1")
    process.send_signal(getattr(signal, f"SIG{name}"))
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"asked to stop by SIG{name}; the command ended with 75" in said
    assert (world.folder / "heard").read_text() == "heard\n"
    assert len(world.trained()) == 1


def test_ctrl_c_comes_to_the_command_once_and_a_second_time_when_pressed_twice(world):
    world.start(
        1,
        """trap 'echo heard >>"$WORLD/heard"; echo saves' INT
        echo "step 1"
        until [ "$(grep -c heard "$WORLD/heard" 2>/dev/null)" = 2 ]; do sleep 0.05; done
        exit 75""",
    )
    process = world.begin("again.sh", *COMMAND)
    read_until(process, "step 1")
    press_ctrl_c(process)
    read_until(process, "saves")
    assert (world.folder / "heard").read_text() == "heard\n"
    press_ctrl_c(process)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "asked to stop by SIGINT" in said


def test_a_signal_between_two_starts_ends_it(world):
    world.start(1, "exit 75")
    process = world.begin("again.sh", *COMMAND, ASTROLLAVA_PAUSE="60")
    read_until(process, "start 2 of at most")
    process.terminate()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "between two starts" in said
    assert len(world.trained()) == 1


def test_what_a_terminal_shows_comes_through(world):
    """The command is not in the terminal's foreground, and may write to it all the same."""
    world.start(1, '[ -t 1 ] && echo "a terminal"')
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        ["bash", str(world.checkout / "launch" / "again.sh"), *COMMAND],
        env=world.environment, cwd=world.checkout, start_new_session=True,
        stdin=writer, stdout=writer, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    assert process.wait(timeout=60) == 0
    assert b"a terminal" in os.read(reader, 1000)
    os.close(reader)


def test_without_a_command_it_says_how_it_is_used(world):
    code, said = world.run("again.sh")
    assert code == 2 and "launch/again.sh astrollava train RUN.yaml" in said
