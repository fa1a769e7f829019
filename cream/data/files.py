"""Rows in JSON Lines files, and files that appear whole or not at all."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from cream.data.errors import InputError


def read_rows(path):
    """The rows of a JSON Lines file. A broken line is named, with what to do about it."""
    try:
        with open(path, encoding="utf-8-sig") as file:  # editors on Windows put a mark at the beginning
            return [_parse(line, f"{path}, line {number}") for number, line in enumerate(file, start=1)]
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None


def write_rows(path, rows):
    with atomic_write(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path, value):
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def atomic_write(path):
    """A temporary path to write a file or folder at; it takes its real name only when the block ends well."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    _remove(temporary)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def seed_for(seed, stage):
    """The seed of one stage: the run's `seed` and the stage's own name, hashed to 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:4], "big")


def _parse(line, where):
    try:
        row = json.loads(line)
        if r"\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} holds {ascii(error.object[error.start])}, half of a character: mend or remove that line"
        ) from None
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise InputError(f"{where} is not JSON ({reason}): mend or remove that line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object: mend or remove that line")
    return row


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
