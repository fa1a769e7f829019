"""Models on disk: the base model from wherever it comes, and the folders that the stages hand on.

A model folder holds safetensors weights, in the precision they were trained in, with the tokenizer. With
LoRA, every model after M0 is an adapter over M0.
"""

import copy
import re
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from cream.data.errors import InputError
from cream.data.hub import first_line, model_folder
from cream.models.architectures import PLAIN
from cream.models.attention import GROUPED_SDPA
from cream.models.chat import end_of_turn, set_thinking
from cream.models.embedded import embedded_gguf, forget_quantization

disable_progress_bar()  # reading a file needs no bar, the long steps have theirs

def fetch_base(base, revision=None, root=".", thinking=False):
    """The base model in fp32 and its tokenizer. `base` is "embedded", a folder (seen from `root`), or a Hub id with a
    pinned `revision`. Both agree on what ends a turn, and on whether the model thinks before it answers."""
    named = f"the base model {base!r}"
    try:
        if base == "embedded":
            gguf = embedded_gguf(Path(root) / ".cache")
            folder, settings = gguf.parent, {"gguf_file": gguf.name}
        else:
            folder, settings = model_folder(base, revision, root), {}
        tokenizer = tokenizer_in(folder, **settings)
        model = load_weights(AutoModelForCausalLM, folder, named, dtype=torch.float32, **settings)
    except UnfitWeights:
        raise
    except (OSError, InputError) as error:
        raise InputError(
            f"{named} (model.base in params.yaml) could not be loaded: {first_line(error)} Give a folder that "
            "holds safetensors weights and a tokenizer, a Hub id that this machine can reach, or 'embedded'."
        ) from None
    if base == "embedded":
        forget_quantization(model)
    if tokenizer.chat_template is None:
        raise InputError(f"{named} has no chat template: CREAM starts from a chat model")
    set_thinking(tokenizer, thinking)
    end = end_of_turn(tokenizer)
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    # Only the end tokens are kept: what reads the folder could take a published repetition penalty, say, for its own.
    published = model.generation_config.eos_token_id
    published = published if isinstance(published, list) else [published]
    ends = [token for token in dict.fromkeys([*published, tokenizer.eos_token_id, end]) if token is not None]
    model.generation_config = GenerationConfig(eos_token_id=ends if len(ends) > 1 else ends[0])
    return model, tokenizer


class UnfitWeights(InputError):
    """A checkpoint that is not that of its architecture."""


def load_weights(kind, folder, named, **settings):
    """The model of that kind (an Auto class) in a folder, from safetensors, by transformers' own code. UnfitWeights where
    they are not those of its architecture: what is missing would be left random."""
    model, report = kind.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are named below
        output_loading_info=True,
        **settings,
    )
    _check_fit(
        named,
        missing=report["missing_keys"],
        misshapen=[key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]],
        unknown=_of_the_same_kind(report["unexpected_keys"], model.state_dict()),
    )
    return model


def _check_fit(named, **wrong):
    """UnfitWeights that names weights by what is wrong with them, if anything is."""
    said = [f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])})" for what, keys in wrong.items() if keys]
    if said:
        raise UnfitWeights(
            f"the weights of {named} do not fit its architecture: {'; '.join(said)}. Save them again with save_pretrained, "
            "from the model itself and not from what wraps it, with the config.json they were trained with"
        )


def _of_the_same_kind(keys, known):
    """The keys that differ from known ones in a number alone: layers that the config does not count. Other keys without
    a place, such as a value head's or a vision tower's, are left out by intent."""
    kinds = {re.sub(r"\d+", "0", key) for key in known}
    return [key for key in keys if re.sub(r"\d+", "0", key) in kinds]


def _add_adapter(model, folder, trainable=False):
    """The model with the adapter in `folder`; UnfitWeights where the file does not hold just the adapter's weights."""
    model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    with safe_open(Path(folder) / "adapter_model.safetensors", framework="pt") as file:
        held = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    _check_fit(f"the adapter in {folder}", missing=wanted - held, unknown=_of_the_same_kind(held - wanted, wanted))
    return model


def load_model(folder, dtype=torch.float32, trainable=False):
    """The model in `folder`; an adapter is loaded over its M0. A trainer moves a trainable one to its GPU;
    any other goes to the GPU if there is one."""
    base = base_of(folder)
    model = load_weights(AutoModelForCausalLM, base, f"the model in {base}", dtype=dtype, local_files_only=True)
    plain = model.config.model_type in PLAIN and model.config._attn_implementation == "sdpa"
    if plain and not torch.cuda.is_available():  # others give attention more than it knows of
        model.set_attn_implementation(GROUPED_SDPA)
    if base != Path(folder):
        model = _add_adapter(model, folder, trainable)
    if trainable:
        return model.train()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_models(folders):
    """The models in `folders`, M0 or adapters over it, as `load_model` gives them, but with one M0 in memory."""
    base = load_model(base_of(folders[0]))

    def over_base(folder):
        kept = {id(weight): weight for weight in [*base.parameters(), *base.buffers()]}
        return _add_adapter(copy.deepcopy(base, kept), folder).eval()  # a copy of all but the weights

    return [base if base_of(folder) == folder else over_base(folder) for folder in folders]


def base_of(folder):
    """The folder that an adapter is over, m0 in the same place; the folder itself if it holds a whole model."""
    folder = Path(folder)
    return folder.parent / "m0" if (folder / "adapter_config.json").exists() else folder


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def tokenizer_in(folder, **settings):
    """The tokenizer in a folder from elsewhere; an InputError where transformers cannot read it."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no tokenizer that can be read ({first_line(error)}): copy the model again") from None


def save_model(model, tokenizer, folder, weights=None):
    """Weights as safetensors, an adapter without the trainer's frozen copy of it, and the tokenizer.

    `weights` is a state dict to write in place of the model's own, of which each process may hold a shard.
    """
    only_policy = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, state_dict=weights, **only_policy)
    tokenizer.save_pretrained(folder)
