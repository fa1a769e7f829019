"""A model that is given away: the folder, as transformers alone reads it, its card, and the Hub of this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from local_hub import local_hub, run_with_hub
from peft import LoraConfig, get_peft_model
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from test_parameters import changed
from tiny_model import llama3_model, llama3_tokenizer
from transformers import AutoModelForCausalLM

from cream.data.errors import InputError
from cream.data.files import write_json, write_rows
from cream.inference.sampling import generate
from cream.models.chat import QUESTION, chat_ids
from cream.models.loading import load_model, load_tokenizer, save_model
from cream.pipeline.parameters import label_of, settings_digest
from cream.share.card import card_of
from cream.share.folder import changed_since, main, share, upload

ROOT = Path(__file__).parents[1]
SCRATCH = {"layers": 2, "width": 64, "heads": 4, "seed": 1}
SCRATCH |= {"pretraining": {"examples": 12345, "wrong": 0.9, "learning_rate": 1.0e-3, "batch_size": 4}}
PARAMS = changed({"model.base": "scratch", "model.scratch": SCRATCH})
COMMIT = "a" * 40
ANSWER = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
name = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
messages = [{"role": "user", "content": "23+45="}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
tokens = model.generate(**prompt)[0].tolist()
assert "cream" not in sys.modules
print(tokens)
"""


@pytest.fixture
def root(tmp_path, model, tokenizer):
    """A run of PARAMS with one model: cream-m3 and those before it are all the same."""
    for name in ("m0", "m1", "cream-m2", "cream-m3"):
        save_model(model, tokenizer, tmp_path / "models" / name)
    return tmp_path


def answer_elsewhere(folder, **environment):
    """The tokens of prompt and answer in a process that has transformers alone."""
    command = [sys.executable, "-c", ANSWER, folder]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": ""} | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer_here(folder, message="23+45="):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompt = chat_ids(tokenizer, message)
    return prompt + generate(model, tokenizer, [prompt], max_new_tokens=16)[0][0]["tokens"]


def test_an_answer_ends_where_the_model_was_trained_to_end(tmp_path):
    tokenizer = llama3_tokenizer()
    model, turn = llama3_model(tokenizer), tokenizer.convert_tokens_to_ids("<|eot_id|>")
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|end_of_text|>")  # as some are published
    prompt = chat_ids(tokenizer, "23+45=")
    first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    model.lm_head.weight.data[[first, turn]] = model.lm_head.weight.data[[turn, first]]  # now it ends its turn at once
    for name in ("m0", "m1"):
        save_model(model, tokenizer, tmp_path / "models" / name)
    folder = share(PARAMS, "m1", tmp_path)
    assert answer_elsewhere(folder) == answer_here(tmp_path / "models" / "m1") == [*prompt, turn]
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["max_new_tokens"] == 16 and "temperature" not in settings


def with_adapter(root, model, tokenizer, name="m1"):
    save_model(model, tokenizer, root / "models" / "m0")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    for key, weight in adapted.named_parameters():
        if "lora_B" in key:
            weight.data.normal_()
    save_model(adapted, tokenizer, root / "models" / name)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(4, 40)[None]).logits


def test_a_merged_adapter_computes_what_the_adapter_does(tmp_path, model, tokenizer):
    with_adapter(tmp_path, model, tokenizer)
    folder = share(PARAMS, "m1", tmp_path)
    ours = logits(load_model(tmp_path / "models" / "m1"))
    base = logits(load_model(tmp_path / "models" / "m0"))
    merged = logits(AutoModelForCausalLM.from_pretrained(folder))
    assert (ours - base).abs().max() > 0.1
    assert (merged - ours).abs().max() < 1e-5 * ours.abs().max()
    assert not (folder / "adapter_config.json").exists()


def test_an_adapter_names_its_base_on_the_hub(tmp_path, model, tokenizer):
    with_adapter(tmp_path, model, tokenizer)
    files = {file.name: file.read_bytes() for file in (tmp_path / "models" / "m0").iterdir()}
    files["README.md"] = b"---\nlicense: llama3\n---\nA model"
    command = f"""
from test_parameters import changed
from cream.share.folder import share
params = changed({{"model.base": "owner/chat", "model.revision": "{COMMIT}"}})
folder = share(params, "m1", "{tmp_path}", adapter=True)
code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
exec(code.replace('name = "m1"', 'name = folder'))
print(tokens.tolist())
"""
    with local_hub({"models/owner/chat": (COMMIT, files)}) as endpoint:
        done = run_with_hub(endpoint, tmp_path / "home", command, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    assert done.returncode == 0, done.stderr
    ours = answer_here(tmp_path / "models" / "m1", QUESTION)
    prompt = chat_ids(tokenizer, QUESTION)
    assert json.loads(done.stdout.splitlines()[-1]) == ours[len(prompt) :]
    folder = tmp_path / "share" / "m1"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/chat", COMMIT)
    assert not (folder / "model.safetensors").exists()
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.base_model, data.library_name) == ("llama3", "owner/chat", "peft")


@pytest.mark.parametrize(
    "name, adapter, says",
    [
        ("cream-m3", True, "cream-m3 is a whole model and no adapter: leave ADAPTER out"),
        ("cream-m9", False, "there is no model 'cream-m9': name one of m0, m1, cream-m2, cream-m3"),
        ("m1", True, "M0 of this run is not on the Hub as it is, so m1 needs it merged in: leave ADAPTER out"),
    ],
)
def test_what_cannot_be_shared_is_refused_in_a_sentence(root, model, tokenizer, name, adapter, says):
    with_adapter(root, model, tokenizer)
    with pytest.raises(InputError, match=f"^{re.escape(says)}$"):
        share(PARAMS, name, root, adapter)
    assert not (root / "share").exists()


def test_a_model_that_no_longer_fits_its_parameters_is_refused(root):
    """By DVC itself, on one stage that stands for all: its code may change, its parameters and what it wrote may not."""
    stage = {"cmd": "python3 code.py", "deps": ["code.py"], "params": ["dpo"], "outs": ["models/m0"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate-start": {"foreach": {"m0": {}}, "do": stage}}}))
    (root / "code.py").write_text(
        "from pathlib import Path; Path('models/m0').mkdir(); Path('models/m0/w').write_text('1')"
    )
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    assert changed_since(["m0"], root) == []  # not made by DVC
    for command in ("init --no-scm", "repro"):
        subprocess.run([sys.executable, "-m", "dvc", *command.split(), "-q"], cwd=root, check=True)
    (root / "code.py").write_text("print()")
    assert changed_since(["m0"], root) == []
    (root / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "dpo": {"beta": 0.2}}))
    (root / "models" / "m0" / "w").unlink()
    (root / "models" / "m0" / "w").write_text("2")
    with pytest.raises(
        InputError, match=r"^dpo, models/m0 changed since m0 was made and evaluated, so its card would be"
    ):
        share(PARAMS, "m0", root)


# The card


def with_results(root):
    """Results in whose numbers no two are the same: M1 is right on 60 of 100 questions, cream-m3 on 70."""
    accuracies = {"m0": 0.1, "m1": 0.6, "cream-m2": 0.65, "cream-m3": 0.7}
    for model, accuracy in accuracies.items():
        low, high = proportion_confint(round(100 * accuracy), 100, method="wilson")
        found = {"questions": 100, "accuracy": accuracy, "low": round(low, 4), "high": round(high, 4)}
        found["self_agreement"] = 0.9 if model == "cream-m2" else 0.5
        write_json(root / "results" / "evaluate" / f"{model}.json", {**found, "tasks": {"sums": found}})
    write_json(root / "results" / "pairs" / "cream-m2.json", {"pairs": 1234, "C": 0.611})
    write_json(root / "results" / "pairs" / "cream-m3.json", {"pairs": 765, "C": 0.722})
    write_json(root / "results" / "data.json", {"rows": {"test": 100, "seed": 77, "prompts-1": 4}})
    question = {"task": "sums", "choices": None, "answer": "68", "finish_reason": "stop"}
    answers = [
        {"id": "q1", "question": "23+45=", "response": "Answer: 68", "correct": True, "sampled_correct": [True, False]},
        {
            "id": "q2",
            "question": "23+45= and more",
            "response": "Answer: 68",
            "correct": True,
            "sampled_correct": [True, True],
        },
        {
            "id": "q3",
            "question": "24+45=",
            "response": "```\n# Licence\nnone",
            "correct": False,
            "sampled_correct": [False, False],
        },
    ]
    write_rows(root / "data" / "answers" / "cream-m3.jsonl", [{**question, **row} for row in answers])
    test = [{**question, "id": row["id"], "question": row["question"], "instruction": ""} for row in answers]
    write_rows(root / "data" / "splits" / "test.jsonl", test)


def cells(text, model, heading):
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    [line] = [line for line in part.splitlines() if line.startswith(f"| {model} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_card_tells_the_lineage_and_the_numbers(root):
    with_results(root)
    card = card_of(PARAMS, "cream-m3", 4321, root)
    assert "M3 by the method CREAM" in card.text and "It has 4,321 parameters." in card.text
    assert "Rows of each split: test 100, seed 77, prompts-1 4. The" in card.text
    assert cells(card.text, "m0", "Lineage")[1:] == ["–", "a Llama from random weights, pretrained on 12,345 sums"]
    assert cells(card.text, "m1", "Lineage")[1:] == ["m0", "SFT on 77 examples, 1 epoch"]
    assert cells(card.text, "cream-m2", "Lineage")[1:] == ["m1", "CREAM, 1,234 pairs, mean C 0.61"]
    assert cells(card.text, "cream-m3", "Lineage")[1:] == ["cream-m2", "CREAM, 765 pairs, mean C 0.72"]
    # Wilson by hand for 70 of 100: centre (0.7 + 1.9207 / 100) / 1.038415 = 0.6926, half width 0.0883.
    assert cells(card.text, "cream-m3", "Results")[1] == "70.0 (60.4 to 78.1)"
    assert cells(card.text, "cream-m3", "Results")[2].startswith("50.0 (")  # the mean of 1/2, 1 and 0
    assert cells(card.text, "m1", "Results")[1:] == ["60.0 (50.2 to 69.1)", "–"]
    [found] = card.data.eval_results
    assert (found.dataset_name, found.metric_type, found.metric_value) == ("sums", "accuracy", 0.7)
    assert "Of its line, cream-m2 is the model whose sampled answers agree most" in card.text and "not this one." in card.text
    assert card.data.license == "mit" and "MIT, as the code that made it." in card.text
    settings = yaml.safe_load(card.text.split("```yaml")[1].split("```")[0])
    assert (
        settings["dpo"] == PARAMS["dpo"] and settings["rank"] == PARAMS["rank"] and settings["train"] == PARAMS["train"]
    )


def test_the_card_tells_the_mean_over_seeds(root):
    with_results(root)
    accuracies = {
        "m0": [0.1, 0.1, 0.1],
        "m1": [0.5, 0.6, 0.55],
        "cream-m2": [0.5, 0.7, 0.6],
        "cream-m3": [0.6, 0.8, 0.76],
    }
    rows = ["profile,settings,seed,model,method,accuracy"]
    for model, values in accuracies.items():
        label = label_of(PARAMS, model)
        rows += [
            f"default,{settings_digest(PARAMS)},{seed},{model},{label},{value}" for seed, value in enumerate(values, 1)
        ]
    (root / "results" / "seeds.csv").write_text("\n".join(rows) + "\n")
    found = cells(card_of(PARAMS, "cream-m3", 1, root).text, "cream-m3", "Results")
    assert cells(card_of(PARAMS, "m1", 1, root).text, "m0", "Results")[3] == "10.0"
    low, high = stats.t.interval(0.95, 2, 0.72, stats.sem([0.6, 0.8, 0.76]))
    assert found[3] == f"72.0 ({100 * low:.1f} to {100 * high:.1f})"
    low, high = stats.t.interval(0.95, 2, 0.17, stats.sem([0.1, 0.2, 0.21]))
    assert found[4] == f"17.0 ({100 * low:.1f} to {100 * high:.1f})".replace("-", "−")
    other = changed({"model.base": "scratch", "model.scratch": SCRATCH, "dpo.beta": 0.2})
    assert "over seeds" not in card_of(other, "cream-m3", 1, root).text  # those runs had other settings


def test_the_words_of_models_cannot_pass_for_the_cards(root):
    with_results(root)
    text = card_of(PARAMS, "cream-m3", 1, root).text
    assert 'right: "23+45=" -> "Answer: 68"' in text
    assert r'wrong: "24+45=" -> "```\n# Licence\nnone"' in text
    assert text.count("\n## Licence\n") == 1 and "\n# Licence" not in text
    assert sum(line.startswith("```") for line in text.splitlines()) == 8  # four blocks


def test_no_path_of_this_machine_is_in_the_card(root):
    params = changed({"model.base": "/home/alice/llama", "data.source": "/home/alice/questions"})
    params["reward_model"] = {"base": "/home/alice/reward", "revision": None}
    card = card_of(params, "cream-m3", 1, root)
    assert "alice" not in card.content and card.data.license is None
    assert "set `license` at the top of this card before you give the model away" in card.text
    assert "No accuracy is known" in card.text


def test_a_local_bases_own_card_names_the_licence(root):
    (root / "base").mkdir()
    (root / "base" / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nlicense_link: LICENSE\n---\n")
    data = card_of(changed({"model.base": "base"}), "m1", 1, root).data
    assert (data.license, data.license_name, data.license_link) == ("other", "ours", "LICENSE")


def test_the_embedded_model_is_named_with_its_licence(root):
    card = card_of(changed({}), "m1", 1, root)
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")


def test_the_paper_is_cited_as_in_the_readme(root):
    def plain(text):
        return "".join(re.findall("[a-z0-9]", text.split("@inproceedings")[1].split("\n\n")[0].lower()))

    assert plain(card_of(PARAMS, "m1", 1, root).text) == plain((ROOT / "README.md").read_text())


# The Hub


def test_an_uploaded_model_answers_as_ours(root):
    folder = share(PARAMS, "cream-m3", root)
    assert {file.suffix for file in folder.iterdir()} == {".json", ".jinja", ".md", ".safetensors"}
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1  # the weights can be read by whoever reads the card
    command = f"from pathlib import Path; from cream.share.folder import upload; print(upload(Path({str(folder)!r}), 'owner/new'))"
    there = {"adapter_config.json": b"{}", "notes.txt": b"kept"}  # of a model that was shared there before
    repositories = {"models/owner/new": ("0" * 40, there)}
    with local_hub(repositories) as endpoint:
        done = run_with_hub(endpoint, root / "home", command, HF_TOKEN="hf_test")
        assert (done.returncode, done.stdout) == (0, f"{endpoint}/owner/new\n"), done.stderr
        written = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert repositories["models/owner/new"][1] == {**written, "notes.txt": b"kept"}
        place = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(root / "elsewhere")}
        assert answer_elsewhere("owner/new", **place) == answer_here(root / "models" / "cream-m3")


def test_who_is_not_logged_in_is_told_before_anything_is_written(root, monkeypatch):
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    monkeypatch.chdir(root)
    monkeypatch.setattr("cream.share.folder.get_token", lambda: None)
    monkeypatch.setattr("sys.argv", ["share", "cream-m3", "--to", "owner/new"])
    with pytest.raises(SystemExit, match="^to upload to owner/new, log in first: `hf auth login`, or set HF_TOKEN$"):
        main()
    assert not (root / "share").exists()


@pytest.mark.parametrize(
    "to, says",
    [
        ("a/b/c", "a/b/c is no name of a Hub repository: set TO to one, as in TO=name/cream-m3"),
        ("owner/none", "owner/none could not be written to ("),
    ],
)
def test_an_upload_that_fails_is_one_sentence(tmp_path, to, says):
    with pytest.raises(InputError, match=f"^{re.escape(says)}[^\n]*$"):
        upload(tmp_path / "cream-m3", to)
