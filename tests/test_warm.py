"""A server that has imported little: what is forked from it behaves like a program of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cream.pipeline.warm import place_of_sockets

ROOT = Path(__file__).parents[1]
PROGRAM = """
import gc, os, sys, time
from pathlib import Path
if sys.argv[1] == "shared":
    print(gc.get_freeze_count() > 0)
    sys.exit()
if sys.argv[1] == "report":
    print(os.getcwd(), os.environ["GREETING"], sys.argv[2:], flush=True)
    print("aside", file=sys.stderr)
    sys.exit(7)
if sys.argv[1] == "sentence":
    sys.exit("it went wrong")
if sys.argv[1] == "error":
    raise KeyError("missing")
if sys.argv[1] == "wait":
    Path(sys.argv[2]).write_text(str(os.getpid()))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        Path(sys.argv[2]).write_text("interrupted")
        sys.exit(3)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    (folder / "program.py").write_text(PROGRAM)
    address = folder / "server"
    start = "import sys; from cream.pipeline import warm; warm.LIBRARIES, warm.IDLE = ['json'], 3; warm.serve(sys.argv[1])"
    server = subprocess.Popen([sys.executable, "-c", start, str(address)], cwd=folder, env=environment(folder))
    wait_for(address.exists)
    yield folder
    server.terminate()


def environment(folder):
    return os.environ | {
        "PYTHONPATH": f"{ROOT}:{folder}",
        "CREAM_WARM": str(folder / "server"),
        "GREETING": "hello",
        "PATH": str(Path(sys.executable).parent),  # without nvidia-smi
    }


def command(*arguments):
    return [sys.executable, "-m", "cream.pipeline.warm", "program", *arguments]


def run(folder, *arguments, **changes):
    settings = dict(cwd=folder, env=environment(folder) | changes, capture_output=True, text=True, timeout=30)
    return subprocess.run(command(*arguments), **settings)


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within ten seconds")


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


@pytest.mark.parametrize("warm", [True, False])
def test_a_fork_has_the_folder_environment_output_and_exit_code_of_a_program(folder, warm):
    done = run(folder, "report", "a", "b c", GREETING="good day", **({} if warm else {"CREAM_WARM": "0"}))
    assert done.stdout == f"{folder} good day ['a', 'b c']\n" and done.stderr == "aside\n" and done.returncode == 7


@pytest.mark.parametrize("warm", [True, False])
def test_a_failure_is_told_as_by_a_program(folder, warm):
    off = {} if warm else {"CREAM_WARM": "0"}
    done = run(folder, "sentence", **off)
    assert done.stderr == "it went wrong\n" and done.returncode == 1
    done = run(folder, "error", **off)
    assert done.stderr.endswith("KeyError: 'missing'\n") and "most recent call last" in done.stderr
    assert done.returncode == 1


def start_waiting(folder, name):
    client = subprocess.Popen(command("wait", name), cwd=folder, env=environment(folder), stderr=subprocess.DEVNULL)
    written = folder / name
    wait_for(lambda: written.exists() and written.read_text())
    return client, int(written.read_text())


def test_it_is_a_fork_and_ends_with_the_program_that_asked_for_it(folder):
    client, fork = start_waiting(folder, "killed")
    assert parent_of(fork) not in (client.pid, os.getpid()) and is_alive(fork)
    client.kill()
    client.wait()
    wait_for(lambda: not is_alive(fork))


def test_a_collection_in_a_fork_leaves_alone_what_the_server_imported(folder):
    assert run(folder, "shared").stdout == "True\n"


def test_a_stage_that_hands_its_work_to_a_fork_imports_none_of_the_libraries():
    code = "import sys, cream.pipeline.stage; print({'torch', 'papermill', 'jsonschema', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"


def test_a_socket_has_a_name_that_is_short_enough(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/short")
    assert place_of_sockets() == "/short"
    monkeypatch.setattr(tempfile, "tempdir", "/" + 90 * "a")
    assert place_of_sockets() == "/tmp"


def test_an_interrupt_reaches_the_fork(folder):
    client, fork = start_waiting(folder, "interrupt")
    client.send_signal(signal.SIGINT)
    assert client.wait(timeout=10) == 3 and (folder / "interrupt").read_text() == "interrupted"


def test_a_fork_that_is_killed_is_a_failure(folder):
    client, fork = start_waiting(folder, "lost")
    os.kill(fork, signal.SIGKILL)
    assert client.wait(timeout=10) == 1


def test_without_a_server_the_program_runs_by_itself(folder, tmp_path):
    done = run(folder, "report", CREAM_WARM=str(tmp_path / "nobody"))
    assert done.returncode == 7 and done.stdout.endswith("hello []\n")
    assert not (tmp_path / "nobody").exists()


def test_it_ends_when_there_is_nothing_to_do(folder):
    wait_for(lambda: not (folder / "server").exists())
