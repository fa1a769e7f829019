"""Published chat templates, as TRL carries them, on a tokenizer of bytes that knows the special tokens they write."""

import re
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"


def template_tokenizer(name, eos="<|endoftext|>", special=(), bos="<s>"):
    """The template of that name on bytes. `special` are further special tokens; those that the template itself writes
    between < and > are known too, but for the tags of thoughts, which are text."""
    template = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    written = set(re.findall(r"<[|｜][^<>'\"\s]+[|｜]>|<(?:start|end)_of_[a-z]+>", template)) - {bos, eos}
    return tokenizer_with(template, eos, [*sorted(written), *special], bos)


def tokenizer_with(template, eos="<|endoftext|>", special=(), bos="<s>"):
    named = [token for token in (bos, eos) if token]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *named, *special])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    fast.chat_template = template
    return fast
