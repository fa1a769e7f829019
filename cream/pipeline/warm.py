"""Stages that start at once: one process imports the heavy libraries, and each stage and its kernel is a fork of it.

A run has some eighty stages of a few seconds, and each needs torch and transformers in its kernel, papermill and
nbconvert besides: seven seconds of imports, every time. So the first stage starts a server that imports them once,
and those after it, `python -m cream.pipeline.stage` and their kernels, are forked from it. It imports nothing of this project,
so that a stage runs the code as it is now. It ends by itself after a minute without work. Where it cannot be used (a
GPU, whose driver does not survive a fork; macOS, whose libraries do not; CREAM_WARM=0) everything is started anew.
"""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LIBRARIES = (
    "torch transformers transformers.models.llama.modeling_llama transformers.models.auto.modeling_auto transformers.trainer "
    "trl.trainer.dpo_trainer trl.trainer.reward_trainer peft datasets pandas seaborn scipy.stats statsmodels.stats.proportion "
    "statsmodels.stats.weightstats statsmodels.stats.multitest statsmodels.stats.contingency_tables "
    "papermill nbconvert nbconvert.exporters.html pygments.formatters latex2mathml.converter ipykernel.kernelapp "
    "ipykernel.debugger jsonschema"
).split()
IDLE = 60  # seconds without a stage after which the server ends
forked = False  # whether this process is a fork of the server


def run(module, arguments):
    """Ends this process as `python -m module arguments` ends, which is a fork of the server where there is one."""
    code = forward(module, arguments)
    if code is not None:
        sys.exit(code)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def forward(module, arguments):
    """Runs `python -m module arguments` as a fork of the server and returns its exit code; None where there is no server,
    which in a pipeline is then started for the stages to come."""
    given = os.environ.get("CREAM_WARM")
    if forked or not _is_usable():
        return None
    end_with_parent()
    os.environ["CREAM_WARM"] = address = given or _address()  # the kernel of a stage asks the same server
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            job = json.dumps({"module": module, "arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)})
            socket.send_fds(connection, [len(job.encode()).to_bytes(8, "big")], [0, 1, 2])
            connection.sendall(job.encode())
            fork, code = int.from_bytes(connection.recv(4), "big"), b""
            if fork:
                signal.signal(signal.SIGINT, lambda *_: os.kill(fork, signal.SIGINT))
                code = connection.recv(1)
        except (FileNotFoundError, ConnectionError):
            if not given and "DVC_STAGE" in os.environ:  # a stage that is run alone has none to come
                _start_server(address)
            return None
    if not fork:
        return None
    return code[0] if code else 1  # without a code it was killed


def end_with_parent():
    """A stage whose pipeline was killed must not go on writing while the next run writes."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_server(address):
    # Imported and not run as a program, so that a fork that imports this module finds it as it is here.
    command = [sys.executable, "-c", "import sys; from cream.pipeline.warm import serve; serve(sys.argv[1])", address]
    silent = subprocess.DEVNULL
    subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, start_new_session=True)


def _is_usable():
    return sys.platform == "linux" and os.environ.get("CREAM_WARM") != "0" and not shutil.which("nvidia-smi")


def place_of_sockets():
    """The folder for temporary files, or /tmp where its name is too long for that of a socket, about a hundred letters."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 50 else "/tmp"


def _address():
    """The socket of the server for this folder, interpreter and environment: what a library read from its environment
    when it was imported must hold for the stage too."""
    theirs = {key: value for key, value in os.environ.items() if not re.match("DVC_|_$|SHLVL$|OLDPWD$", key)}
    what = json.dumps([os.getcwd(), sys.executable, sorted(theirs.items())])
    folder = Path(place_of_sockets(), f"cream-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        sys.exit(f"{folder} belongs to somebody else, or others may write in it: remove it")
    return str(folder / hashlib.sha256(what.encode()).hexdigest()[:16])


def serve(address):
    # Matplotlib reads it when it is imported; the backend itself is left to the kernels, whose cells' figures it shows.
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    gc.freeze()  # else the first collection in each fork would touch, and so copy, all that was imported
    mine = f"{address}.{os.getpid()}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(mine)
    server.listen()
    os.rename(mine, address)  # at once, so that nobody meets a server that does not listen yet
    server.settimeout(IDLE)
    children = set()
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            connection = None
        children = {child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)}
        if connection is None:
            if children:
                continue
            break
        child = os.fork()
        if not child:
            server.close()
            _work(connection)
        children.add(child)
        connection.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)


def _work(connection):
    """In the fork: becomes the process that was asked for, and ends with the one that asked."""
    global forked
    forked, code = True, 1
    try:
        size, files, _, _ = socket.recv_fds(connection, 8, 3)
        job = b""
        while part := connection.recv(min(1 << 16, int.from_bytes(size, "big") - len(job))):
            job += part
        job = json.loads(job)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        connection.sendall(os.getpid().to_bytes(4, "big"))
        threading.Thread(target=lambda: (connection.recv(1), os._exit(1)), daemon=True).start()
        sys.argv = [job["module"], *job["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([code]))
        os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
