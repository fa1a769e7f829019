"""A random two-layer chat model that reads characters, for profiles/test.yaml.

python tests/tiny_model.py .cache/tiny
"""

import sys
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from cream.models.scratch import CHAT_TEMPLATE, character_tokenizer, small_llama

__all__ = ["CHAT_TEMPLATE"]


def tiny_tokenizer():
    return character_tokenizer()


def tiny_model(vocabulary, **settings):
    defaults = {"num_key_value_heads": 2, "intermediate_size": 128, "tie_word_embeddings": False}
    return small_llama(vocabulary, layers=2, width=64, heads=4, **{**defaults, **settings})


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
