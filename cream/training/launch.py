"""Training from folder to folder, in this process or in several that a launcher starts.

A notebook is one process, and each of several GPUs needs one of its own. So what is to be trained is written to a file,
and a launcher such as `accelerate launch` or `torchrun` runs this module on it in every process:

    accelerate launch --config_file launch/ddp.yaml -m cream.training.launch JOB
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
from transformers import set_seed

from cream.data.errors import InputError
from cream.data.files import write_json
from cream.data.parts import folder_for
from cream.models.loading import base_of, load_model, load_tokenizer
from cream.models.precision import in_effect
from cream.training.trainers import Halfway, preference_trainer, save_trained, sft_trainer, train


def train_model(
    start,
    out,
    curve,
    rows,
    settings,
    seed,
    *,
    halfway=None,
    lora=None,
    precision="fp32",
    launch=None,
    report_to=None,
    kept=None,
):
    """Trains the model in the folder `start` and writes it to the folder `out`. Returns its curve, a row a step, which the
    file `curve` holds too and grows with.

    With a beta in `settings`, `rows` are pairs for preference training (see `train_preferences`), else examples for SFT
    (see `fine_tune`). The folder `halfway` gets the model as it is after half of the steps. `precision` is that of the matrix products; `report_to` and `kept` are as in `train`.
    `launch` is None for this process, or the command that starts several; it runs in the folder that holds models/, which
    all machines must see at the same path. The model is the same up to rounding.
    """
    start, out, curve = (Path(path).resolve() for path in (start, out, curve))
    curve.parent.mkdir(parents=True, exist_ok=True)
    work = {"start": str(start), "out": str(out), "curve": str(curve), "rows": rows, "settings": settings, "seed": seed}
    work |= {"lora": lora, "precision": precision, "report_to": report_to}
    inputs = {**work, "out": None, "launch": launch, "precision": in_effect(precision)}
    work["halfway"] = halfway and str(Path(halfway).resolve())
    work["kept"] = kept and str(folder_for(Path(kept).resolve(), inputs, [base_of(start), start]))
    if launch is None:
        return _train(**work)
    job = Path(f"{out}.json")
    write_json(job, work)
    try:
        command = [*shlex.split(launch), "-m", "cream.training.launch", str(job)]
        with subprocess.Popen(command, cwd=start.parents[1], stdin=subprocess.PIPE, stdout=sys.__stderr__) as process:
            status = process.wait()
        if status or not out.exists():
            raise InputError(
                f"training by `{launch}` (scale.launch in params.yaml) ended with exit code {status} and left no model; "
                "its processes say above why. What was made before is kept: run again and this stage starts anew"
            )
        return pd.read_csv(curve)
    finally:
        job.unlink()


def _train(start, out, curve, rows, settings, seed, halfway, lora, precision, report_to, kept):
    set_seed(seed)
    model, tokenizer = load_model(start, trainable=True), load_tokenizer(start)
    if "beta" in settings:
        trainer = preference_trainer(model, tokenizer, rows, settings, seed, precision)
    else:
        trainer = sft_trainer(model, rows, settings, seed, lora, precision)
    trainer.args.run_name = Path(curve).stem
    if halfway:  # written where a run that is killed after it finds it again
        half = Path(kept, "halfway") if kept else Path(halfway)
        trainer.add_callback(Halfway(trainer, tokenizer, half))
    steps = train(trainer, curve, report_to, kept)
    save_trained(trainer, tokenizer, out)
    if halfway and kept and trainer.is_world_process_zero():
        shutil.copytree(half, halfway)
    return steps


def main():
    """One of the processes. It ends when the notebook does, for then the pipe that is its standard input is closed."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    try:
        _train(**job)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
