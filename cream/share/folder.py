"""A model of the run to give away: a folder that transformers alone loads, with a model card made from the run.

python -m cream.share.folder cream-m3                       # share/cream-m3, an adapter merged into its base
python -m cream.share.folder cream-m3 --adapter             # the adapter alone, over an M0 that is on the Hub as it is
python -m cream.share.folder cream-m3 --to name/repository  # and uploads it
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx
from peft import PeftModel
from transformers import GenerationConfig

from cream.data.errors import InputError
from cream.data.files import atomic_write
from cream.data.hub import first_line
from cream.models.chat import end_of_turn
from cream.models.loading import load_model, load_tokenizer, save_model
from cream.pipeline.parameters import lineage_of, load_parameters
from cream.share.card import card_of, kind_of_base
from cream.share.conversation import folder_of


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--adapter", action="store_true")
    parser.add_argument("--to", metavar="name/repository")
    asked = parser.parse_args()
    try:
        if asked.to and get_token() is None:
            raise InputError(f"to upload to {asked.to}, log in first: `hf auth login`, or set HF_TOKEN")
        folder = share(load_parameters("params.yaml"), asked.model, adapter=asked.adapter)
        print(f"{folder} is written; read its README.md before you give it away")
        if asked.to:
            print(f"uploaded to {upload(folder, asked.to)}")
    except InputError as error:
        sys.exit(str(error))


def share(params, name, root=".", adapter=False):
    """Writes the folder share/<name>, and returns its path."""
    source = folder_of(params, name, root)
    changed = changed_since(lineage_of(params, name), root)
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed since {name} was made and evaluated, so its card would be wrong: run "
            "`make repro`, or take back the change"
        )
    model, tokenizer = to_share(params, load_model(source), load_tokenizer(source), name, adapter)
    with atomic_write(Path(root, "share", name)) as folder:
        save_model(model, tokenizer, folder)
        model.generation_config.save_pretrained(folder)  # an adapter is saved without it
        card_of(params, name, model.num_parameters(), root, adapter).save(folder / "README.md")
        for weights in folder.glob("*.safetensors"):  # written so that their owner alone may read them
            weights.chmod((folder / "README.md").stat().st_mode)
    return Path(root, "share", name)


def to_share(params, model, tokenizer, name, adapter):
    """The model as it is given away: it ends an answer where it was trained to, and an adapter is merged, or names its
    base on the Hub."""
    is_adapter = isinstance(model, PeftModel)
    if adapter and not is_adapter:
        raise InputError(f"{name} is a whole model and no adapter: leave ADAPTER out")
    if adapter and (kind_of_base(params) != "hub" or params["model"]["warmup"]):
        raise InputError(f"M0 of this run is not on the Hub as it is, so {name} needs it merged in: leave ADAPTER out")
    if adapter:
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = params["model"]["base"], params["model"]["revision"]
    elif is_adapter:
        model = model.merge_and_unload()
    ends = model.generation_config.eos_token_id
    ends = sorted({*(ends if isinstance(ends, list) else [ends]), end_of_turn(tokenizer)} - {None})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    most = params["evaluation"]["max_new_tokens"]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad, max_new_tokens=most)
    model.config.use_cache = True  # training turns it off
    return model, tokenizer


def changed_since(models, root="."):
    """The parameters and files that changed since these models were made and evaluated, by DVC. Code is left out: it is
    what its commit was."""
    if not Path(root, "dvc.lock").exists():
        return []
    stages = [f"evaluate{'-start' if model in ('m0', 'm1') else ''}@{model}" for model in models]
    command = [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", *stages]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"`dvc status` failed: {first_line(done.stderr)}")
    changes = [change for stage in json.loads(done.stdout).values() for change in stage if isinstance(change, dict)]
    params = [key for change in changes for key in change.get("changed deps", {}).get("params.yaml", {})]
    files = [path for change in changes for path, how in change.get("changed outs", {}).items() if how == "modified"]
    return sorted({*params, *files})


def upload(folder, repository):
    """The address of the Hub repository, made where it is not there, that now holds the folder's files."""
    api = HfApi()
    try:
        address = api.create_repo(repository, exist_ok=True)
        # A model that was shared there before, as an adapter perhaps, leaves nothing of its own.
        replaced = ["*.json", "*.safetensors"]
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message=folder.name, delete_patterns=replaced
        )
    except HFValidationError:
        raise InputError(
            f"{repository} is no name of a Hub repository: set TO to one, as in TO=name/{folder.name}"
        ) from None
    except (OSError, httpx.HTTPError) as error:
        raise InputError(
            f"{repository} could not be written to ({first_line(error)}): log in with `hf auth login`, with a token that "
            "may write there"
        ) from None
    return address


if __name__ == "__main__":
    main()
