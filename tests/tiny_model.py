"""A random two-layer chat model with a character tokenizer, for profiles/test.yaml.

python tests/tiny_model.py .cache/tiny
"""

import string
import sys
from pathlib import Path

import torch
import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tiny_tokenizer():
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": special[1:]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(vocabulary, **settings):
    torch.manual_seed(0)
    settings = {"max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0, **settings}
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **settings,
    )
    return LlamaForCausalLM(config)


def llama3_tokenizer():
    """Bytes in place of Llama-3's vocabulary, but its special tokens, its chat template and no pad token."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *special])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token="<|eot_id|>")
    fast.add_special_tokens({"additional_special_tokens": special[1:4]})
    fast.chat_template = (Path(trl.__file__).parent / "chat_templates" / "llama3.jinja").read_text()
    return fast


def llama3_model(tokenizer):
    """A random two-layer model with Llama-3's rotary base, two end tokens and published sampling settings."""
    ids = tokenizer.convert_tokens_to_ids
    ends = [ids("<|end_of_text|>"), ids("<|eot_id|>")]
    model = tiny_model(
        len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        max_position_embeddings=8192,
        bos_token_id=ids("<|begin_of_text|>"),
        eos_token_id=ends,
        pad_token_id=None,
    )
    model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9)
    return model


if __name__ == "__main__":
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(sys.argv[1])
    tiny_model(len(tokenizer)).save_pretrained(sys.argv[1])
