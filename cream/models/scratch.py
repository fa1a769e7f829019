"""A chat model made from nothing: characters as tokens and a small Llama, for experiments that take seconds."""

import re
import string

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|unknown|>"]  # the end token is 0, and the pad token too


def character_tokenizer(*whole):
    """Characters as tokens, and each text of `whole` as one token."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *string.printable, *whole])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    pieces = "|".join([*map(re.escape, whole), r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    fast.chat_template = CHAT_TEMPLATE
    return fast


def small_llama(vocabulary, layers, width, heads, seed=0, **settings):
    """A Llama with random weights that `seed` draws; `settings` are others of its LlamaConfig."""
    torch.manual_seed(seed)
    defaults = dict(
        intermediate_size=3 * width,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **{**defaults, **settings},
    )
    return LlamaForCausalLM(config)
