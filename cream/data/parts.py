"""Work that takes hours, in parts that are kept as they are done, so that a killed run goes on from there.

They are kept outside what DVC knows, in the folder that a stage names (.parts/<stage>), and forgotten when it has ended.
"""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

from cream.data.files import atomic_write

CODE = sorted(Path(__file__).parents[1].glob("*/*.py"))

def in_parts(chunks, compute, kept=None):
    """The result of each chunk. `compute` takes {number: chunk} and gives (number, result) as they are done; the folder
    `kept` holds results as JSON, and what is there is not computed again."""
    paths = [Path(kept or "", f"{number}.json") for number in range(len(chunks))]
    found = {n: json.loads(path.read_text()) for n, path in enumerate(paths) if kept and path.exists()}
    missing = {n: chunk for n, chunk in enumerate(chunks) if n not in found}
    for number, result in compute(missing) if missing else ():
        found[number] = result
        if kept:
            with atomic_write(paths[number]) as temporary:
                temporary.write_text(json.dumps(result))
    return [found[number] for number in range(len(chunks))]


def folder_for(kept, inputs, models):
    """The folder below `kept` for the parts of work on these inputs with the models in these folders. Other inputs, a model
    that has changed, other code of this package or other versions of what computes have another one; it is removed. None
    where `kept` is None."""
    if kept is None:
        return None
    files = [file for model in models for file in sorted(Path(model).resolve().iterdir())]
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    versions = [version(library) for library in ("torch", "transformers", "trl", "peft")]
    digest = hashlib.sha256(json.dumps([inputs, states, versions]).encode())
    for path in CODE:
        digest.update(path.read_bytes())
    folder = Path(kept, digest.hexdigest()[:16])
    for other in Path(kept).glob("*"):
        if other != folder:
            shutil.rmtree(other)
    return folder
