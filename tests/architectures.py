"""Tiny random models of many architectures, with windows and chunks of a few tokens, so that a short text shows them; and
the table of how each is scored, written with and adapted.

python tests/architectures.py
"""

from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny_model import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from cream.inference.logprobs import response_logprobs, shares_prompts
from cream.inference.sampling import generate, reader_for
from cream.inference.selftest import WRITTEN
from cream.models.architectures import PLAIN, attention_span
from cream.training.trainers import adapter_config

PAGE = Path(__file__).parents[1] / "reports" / "architectures.md"
VLLM = Path(__file__).with_name("vllm_architectures.txt").read_text(encoding="utf-8").split()
TOKENIZER = tiny_tokenizer()
END = 0
VOCABULARY = dict(vocab_size=97, bos_token_id=None, eos_token_id=END, pad_token_id=END)
LLAMA = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
)
WIDE = {key: LLAMA[key] for key in LLAMA if key not in ("num_key_value_heads", "head_dim")}
EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=32)
LATENT = dict(
    kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16, first_k_dense_replace=1
)
LINEAR = dict(linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_d_conv=4, mamba_n_groups=1, mamba_chunk_size=8)
FULL = dict(num_key_value_heads=4)
SLIDING = dict(layer_types=["sliding_attention", "full_attention"])

# Name -> the model type of transformers and the settings that make it small.
ARCHITECTURES = {
    "Llama": ("llama", LLAMA),
    "Mistral": ("mistral", LLAMA | dict(sliding_window=None)),
    "Mistral, window 8": ("mistral", LLAMA | dict(sliding_window=8)),
    "Ministral": ("ministral", LLAMA | dict(sliding_window=64)),
    "Ministral, window 8": ("ministral", LLAMA | dict(sliding_window=8)),
    "Mixtral": ("mixtral", LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)),
    "Qwen2": ("qwen2", LLAMA),
    "Qwen2-MoE": ("qwen2_moe", LLAMA | EXPERTS | dict(num_experts=4, shared_expert_intermediate_size=32)),
    "Qwen3": ("qwen3", LLAMA),
    "Qwen3-MoE": ("qwen3_moe", LLAMA | EXPERTS | dict(num_experts=4)),
    "Qwen3-Next": (
        "qwen3_next",
        LLAMA
        | EXPERTS
        | LINEAR
        | dict(num_experts=4, shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention"]),
    ),
    "Qwen3.5": ("qwen3_5_text", LLAMA | LINEAR | dict(layer_types=["linear_attention", "full_attention"])),
    "Gemma": ("gemma", LLAMA),
    "Gemma-2": ("gemma2", LLAMA | dict(sliding_window=64)),
    "Gemma-2, window 8": ("gemma2", LLAMA | dict(sliding_window=8)),
    "Gemma-3 text": ("gemma3_text", LLAMA | SLIDING | dict(sliding_window=64)),
    "Gemma-3 text, window 8": ("gemma3_text", LLAMA | SLIDING | dict(sliding_window=8)),
    "Gemma-3 with images": (
        "gemma3",
        dict(
            text_config=LLAMA | VOCABULARY | dict(sliding_window=64, **SLIDING),
            vision_config=dict(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=16,
                patch_size=8,
            ),
            mm_tokens_per_image=4,
            image_token_index=96,
            boi_token_index=94,
            eoi_token_index=95,
        ),
    ),
    "Gemma-3n text": (
        "gemma3n_text",
        LLAMA
        | dict(
            intermediate_size=[96, 96],
            vocab_size_per_layer_input=97,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
            sliding_window=64,
            **SLIDING,
            laurel_rank=8,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0, 0.0],
        ),
    ),
    "Phi": ("phi", WIDE),
    "Phi-3": ("phi3", LLAMA),
    "Phi-MoE": ("phimoe", LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)),
    "GPT-2": ("gpt2", dict(n_embd=64, n_layer=2, n_head=4, n_positions=128)),
    "GPT-BigCode": ("gpt_bigcode", dict(n_embd=64, n_layer=2, n_head=4, n_positions=128)),
    "GPT-Neo": (
        "gpt_neo",
        dict(
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            window_size=64,
            max_position_embeddings=128,
            attention_types=[[["global", "local"], 1]],
        ),
    ),
    "GPT-Neo, window 8": (
        "gpt_neo",
        dict(
            hidden_size=64,
            num_layers=2,
            num_heads=4,
            window_size=8,
            max_position_embeddings=128,
            attention_types=[[["global", "local"], 1]],
        ),
    ),
    "GPT-J": ("gptj", dict(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128)),
    "CodeGen": ("codegen", dict(n_embd=64, n_layer=2, n_head=4, rotary_dim=8, n_positions=128)),
    "GPT-NeoX": ("gpt_neox", WIDE),
    "OPT": (
        "opt",
        dict(
            hidden_size=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=64,
            max_position_embeddings=128,
        ),
    ),
    "BLOOM": ("bloom", dict(hidden_size=64, n_layer=2, n_head=4)),
    "MPT": ("mpt", dict(d_model=64, n_layers=2, n_heads=4, max_seq_len=128)),
    "Falcon": ("falcon", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)),
    "Falcon, ALiBi": ("falcon", dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=True)),
    "Falcon-H1": ("falcon_h1", LLAMA | MAMBA | dict(mamba_d_ssm=128)),
    "Falcon-Mamba": ("falcon_mamba", dict(hidden_size=64, num_hidden_layers=2, state_size=8)),
    "Mamba": ("mamba", dict(hidden_size=64, num_hidden_layers=2, state_size=8)),
    "Mamba-2": (
        "mamba2",
        dict(hidden_size=64, num_hidden_layers=2, state_size=16, num_heads=8, head_dim=16, n_groups=1, chunk_size=8),
    ),
    "Jamba": (
        "jamba",
        WIDE
        | dict(
            num_key_value_heads=2,
            num_experts=4,
            num_experts_per_tok=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            use_mamba_kernels=False,
            mamba_d_state=8,
        ),
    ),
    "Bamba": ("bamba", LLAMA | MAMBA | dict(attn_layer_indices=[1])),
    "Zamba2": (
        "zamba2",
        dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            attention_head_dim=32,
            mamba_d_state=16,
            n_mamba_heads=8,
            mamba_ngroups=1,
            chunk_size=8,
            num_mem_blocks=1,
            layers_block_type=["mamba", "hybrid"],
            max_position_embeddings=128,
            use_mamba_kernels=False,
        ),
    ),
    "Nemotron-H": (
        "nemotron_h",
        LLAMA
        | dict(
            layers_block_type=["mamba", "attention"],
            mamba_num_heads=8,
            mamba_head_dim=16,
            n_groups=1,
            ssm_state_size=16,
            chunk_size=8,
        ),
    ),
    "Granite": ("granite", LLAMA),
    "Granite-MoE": ("granitemoe", LLAMA | dict(num_local_experts=4, num_experts_per_tok=2)),
    "Granite-H": (
        "granitemoehybrid",
        LLAMA
        | MAMBA
        | dict(
            layer_types=["mamba", "attention"], num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=32
        ),
    ),
    "LFM2": ("lfm2", LLAMA | dict(layer_types=["conv", "full_attention"])),
    "LFM2-MoE": (
        "lfm2_moe",
        LLAMA | EXPERTS | dict(layer_types=["conv", "full_attention"], num_experts=4, num_dense_layers=1),
    ),
    "OLMo": ("olmo", LLAMA),
    "OLMo-2": ("olmo2", LLAMA),
    "OLMo-3": ("olmo3", LLAMA | dict(sliding_window=64, **SLIDING)),
    "OLMo-3, window 8": ("olmo3", LLAMA | dict(sliding_window=8, **SLIDING)),
    "OLMoE": ("olmoe", LLAMA | dict(num_experts=4, num_experts_per_tok=2)),
    "StableLM": ("stablelm", LLAMA),
    "StarCoder2": ("starcoder2", LLAMA),
    "Cohere": ("cohere", LLAMA),
    "Cohere-2": ("cohere2", LLAMA | dict(sliding_window=64, **SLIDING)),
    "Cohere-2, window 8": ("cohere2", LLAMA | dict(sliding_window=8, **SLIDING)),
    "DeepSeek-V2": (
        "deepseek_v2",
        WIDE | LATENT | FULL | EXPERTS | dict(n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1),
    ),
    "DeepSeek-V3": (
        "deepseek_v3",
        WIDE | LATENT | FULL | EXPERTS | dict(n_routed_experts=4, n_shared_experts=1, n_group=2, topk_group=1),
    ),
    "GLM-4": ("glm4", LLAMA),
    "GLM-4-MoE": (
        "glm4_moe",
        LLAMA
        | EXPERTS
        | dict(n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1),
    ),
    "Llama-4 text": (
        "llama4_text",
        LLAMA
        | dict(
            intermediate_size_mlp=96,
            num_local_experts=4,
            attention_chunk_size=64,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        ),
    ),
    "Llama-4 text, chunks of 8": (
        "llama4_text",
        LLAMA
        | dict(
            intermediate_size_mlp=96,
            num_local_experts=4,
            attention_chunk_size=8,
            layer_types=["chunked_attention", "full_attention"],
            no_rope_layers=[1, 0],
        ),
    ),
    "gpt-oss": ("gpt_oss", LLAMA | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=64, **SLIDING)),
    "gpt-oss, window 8": (
        "gpt_oss",
        LLAMA | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=8, **SLIDING),
    ),
    "SmolLM3": ("smollm3", LLAMA),
    "Nemotron": ("nemotron", LLAMA),
    "Exaone-4": ("exaone4", LLAMA | dict(sliding_window=64, **SLIDING)),
    "Exaone-4, window 8": ("exaone4", LLAMA | dict(sliding_window=8, **SLIDING)),
    "Hunyuan": ("hunyuan_v1_dense", LLAMA),
    "Ernie-4.5": ("ernie4_5", LLAMA),
    "Seed-OSS": ("seed_oss", LLAMA),
    "MiniMax": (
        "minimax",
        LLAMA
        | dict(
            layer_types=["linear_attention", "full_attention"], num_local_experts=4, num_experts_per_tok=2, block_size=8
        ),
    ),
    "RecurrentGemma": (
        "recurrent_gemma",
        dict(
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            lru_width=64,
            attention_window_size=8,
        ),
    ),
    "RWKV": ("rwkv", dict(hidden_size=64, attention_hidden_size=64, num_hidden_layers=2)),
    "JetMoE": (
        "jetmoe",
        dict(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_key_value_heads=2,
            kv_channels=16,
            num_local_experts=4,
            max_position_embeddings=128,
        ),
    ),
    "XLNet": ("xlnet", dict(d_model=64, n_layer=2, n_head=4, d_inner=96)),
    "BERT as a decoder": ("bert", WIDE | dict(is_decoder=True)),
    "BERT": ("bert", WIDE),
}


def tiny(name):
    """A model of that architecture whose predictions are far from uniform: a wrong mask would hide behind those."""
    model_type, settings = ARCHITECTURES[name]
    vocabulary = {} if "text_config" in settings else VOCABULARY
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **vocabulary, **settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    model.generation_config.eos_token_id = END
    return model.eval()


# Responses that share a prompt and that do not, with pads behind and before, texts beyond a window of 8, and rows of
# several responses that are longer than any text.
PROMPTS = [[1, 2, 3], [7], [1, 2, 3], [4, 5, 6, 8, 9, 11, 12], [7], [1, 2, 3]]
RESPONSES = [
    [10, 11, END],
    [20, 21, 22, 23, 24, 25, 26, END],
    [10, 12, 13, 14, 15],
    [END],
    [30, 31],
    list(range(40, 55)),
]
QUESTIONS = [[9, 8, 7, 6, 5, 4, 3], [20], [30, 31, 32], [40, 41], [9, 8]]
NEW = 12


def plain_sum(model, prompt, response):
    """log p(response | prompt) from one sequence by the model alone."""
    logprobs = model(torch.tensor([prompt + response])).logits[0].float().log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token] for i, token in enumerate(response))


def plain_greedy(model, prompt, count=NEW):
    """Argmax after argmax, the whole text computed anew each time."""
    tokens = []
    while len(tokens) < count and tokens[-1:] != [END]:
        tokens.append(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax().item())
    return tokens


@torch.no_grad()
def measure(name):
    """How a model of that architecture is scored, written with and adapted: a row of the table. Raises AssertionError where
    a number or a token is wrong."""
    model = tiny(name)
    sums = torch.stack([plain_sum(model, *pair) for pair in zip(PROMPTS, RESPONSES)])
    written = [plain_greedy(model, prompt) for prompt in QUESTIONS]
    row = {"architecture": name, "model type": model.config.model_type}
    vllm = "yes" if type(model).__name__ in VLLM else "–"
    for attention in dict.fromkeys([model.config._attn_implementation, fast_attention(model)]):
        model.set_attn_implementation(attention)
        try:
            ours = response_logprobs(model, PROMPTS, RESPONSES)
        except ValueError as error:
            return row | {"scoring": f"refused: {error}", "writing": "", "LoRA": "", "vLLM": ""}
        assert (ours - sums).abs().max() < 1e-3, (name, attention)
        assert [[r["tokens"]] for [r] in generate(model, TOKENIZER, QUESTIONS, max_new_tokens=NEW)] == [
            [w] for w in written
        ], name
    longest = max(len(prompt) + len(response) for prompt, response in zip(PROMPTS, RESPONSES))
    together = shares_prompts(model) and longest <= attention_span(model.config)
    row["scoring"] = "together" if together else "one by one"
    row["writing"] = WRITTEN[reader_for(model)]
    targets = adapter_config(model, {"r": 2, "alpha": 4, "dropout": 0.0}).target_modules
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    sums = torch.stack([plain_sum(adapted, *pair) for pair in zip(PROMPTS, RESPONSES)])
    assert (response_logprobs(adapted, PROMPTS, RESPONSES) - sums).abs().max() < 1e-3, name
    row["LoRA"] = ", ".join(sorted({target.split(".")[-1] for target in targets}))
    return row | {"vLLM": vllm}


def fast_attention(model):
    """The attention that load_model gives a model on a CPU."""
    ours = model.config.model_type in PLAIN and model.config._attn_implementation == "sdpa"
    return "grouped_sdpa" if ours else model.config._attn_implementation


TEXT = """\
# Architectures

Made by `python tests/architectures.py` with transformers {transformers} and PEFT {peft}, from tiny random models;
`tests/test_architectures.py` makes each row again. Every number and token behind it equals, to 1e-3 nats, that of a plain
loop over one sequence at a time, with the attention of transformers and with that of `load_model`.

- **Scoring**: the responses to a prompt *together* in one row behind it, or *one by one* where the architecture mixes tokens
  in a way that knows no mask, or where a text is longer than a window of its attention (the rows with "window 8").
- **Writing**: with a cache, if that gives what the whole text gives.
- **LoRA**: the layers that `model.lora` adapts.
- **vLLM**: whether vLLM 0.32.0 names the architecture in its registry. It was read there and not run.

"""


def table(rows):
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
    head = TEXT.format(transformers=transformers.__version__, peft=peft.__version__)
    return head + "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(table([measure(name) for name in ARCHITECTURES]), encoding="utf-8")
