from pathlib import Path

import pytest
from local_hub import local_hub, run_with_hub

from cream.models.loading import save_model
from cream.pipeline.check import count_parameters

COMMIT = "a" * 40
FETCH = """
import sys
from cream.data.errors import InputError
from cream.data.hub import fetch
try:
    print(fetch({repo!r}, {revision!r}, ["*"], kind={kind!r}))
except InputError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def base(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path / "base")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"a pickle")
    (tmp_path / "base" / "consolidated.safetensors").write_bytes((tmp_path / "base" / "model.safetensors").read_bytes())
    return tmp_path / "base"


@pytest.fixture
def hub(base):
    files = {file.name: file.read_bytes() for file in base.iterdir()}
    repositories = {
        "models/owner/chat": (COMMIT, files),
        "models/owner/gated": (COMMIT, files),
        "datasets/owner/rows": (COMMIT, {"data/train-0.parquet": b"rows"}),
    }
    with local_hub(repositories, gated=["models/owner/gated"]) as endpoint:
        yield endpoint


def fetch(endpoint, home, repo="owner/chat", revision=COMMIT, kind="model", **environment):
    command = FETCH.format(repo=repo, revision=revision, kind=kind)
    return run_with_hub(endpoint, home, command, **environment)


@pytest.mark.parametrize(
    "wanted, says",
    [
        ({"repo": "owner/gated"}, "owner/gated is gated: accept its terms at huggingface.co/owner/gated, then log in"),
        ({"revision": "b" * 40}, f"owner/chat has no commit {'b' * 40}: take one from huggingface.co/owner/chat/"),
        ({"repo": "owner/none"}, "there is no huggingface.co/owner/none that this account may read"),
        ({"repo": "owner/none", "kind": "dataset"}, "there is no huggingface.co/datasets/owner/none that this account"),
        ({"repo": "a/b/c"}, "a/b/c is neither a folder nor the id of a Hub repository"),
    ],
)
def test_what_cannot_be_had_is_one_clear_sentence(hub, tmp_path, wanted, says):
    done = fetch(hub, tmp_path / "home", **wanted)
    assert done.returncode == 1 and done.stderr.startswith(says) and len(done.stderr.strip().splitlines()) == 1


def test_a_token_opens_a_gated_repository(hub, tmp_path):
    assert fetch(hub, tmp_path / "home", repo="owner/gated", HF_TOKEN="hf_test").returncode == 0


def test_no_network_is_one_clear_sentence(tmp_path):
    done = fetch(None, tmp_path / "home")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert f"owner/chat is not in the local cache at the commit {COMMIT}" in done.stderr
    assert "connect this machine to huggingface.co, copy a cache here (HF_HOME), or name a local folder" in done.stderr


def test_a_hub_that_does_not_answer_is_one_clear_sentence(tmp_path):
    done = fetch("http://127.0.0.1:9", tmp_path / "home")
    assert done.returncode == 1 and "could not be downloaded" in done.stderr.strip().splitlines()[-1]
    command = f"""
from cream.data.errors import InputError
from cream.data.hub import count_parameters
try:
    count_parameters("owner/chat", "{COMMIT}")
except InputError as error:
    print(error)
"""
    said = run_with_hub("http://127.0.0.1:9", tmp_path / "home", command).stdout
    assert said.startswith("the size of owner/chat could not be asked for") and len(said.splitlines()) == 1


def test_a_download_that_breaks_off_is_one_clear_sentence_and_can_be_taken_up_again(base, tmp_path):
    files = {"model.safetensors": bytes(100_000)}
    with local_hub({"models/owner/chat": (COMMIT, files)}, breaking="model.safetensors") as endpoint:
        done = fetch(endpoint, tmp_path / "home")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "could not be downloaded" in done.stderr.strip().splitlines()[-1]
    with local_hub({"models/owner/chat": (COMMIT, files)}) as endpoint:
        assert fetch(endpoint, tmp_path / "home").returncode == 0


def test_the_cache_serves_where_the_network_does_not_but_only_its_own_commit(hub, tmp_path):
    assert fetch(hub, tmp_path / "home").returncode == 0
    assert fetch(None, tmp_path / "home").returncode == 0
    assert fetch(None, tmp_path / "home", revision="b" * 40).returncode == 1


def test_a_file_that_was_changed_is_refused(hub, tmp_path):
    folder = fetch(hub, tmp_path / "home", repo="owner/rows", kind="dataset").stdout.strip()
    with open(f"{folder}/data/train-0.parquet", "wb") as file:
        file.write(b"others")
    done = fetch(hub, tmp_path / "home", repo="owner/rows", kind="dataset")
    assert done.returncode == 1 and "train-0.parquet is not the file that was published (its sha256" in done.stderr
    Path(done.stderr.split("delete ")[1].strip()).unlink()  # what the sentence says to do
    done = fetch(hub, tmp_path / "home", repo="owner/rows", kind="dataset")
    assert done.returncode == 0 and Path(done.stdout.strip(), "data/train-0.parquet").read_bytes() == b"rows"


def test_a_base_model_comes_from_the_hub_without_its_pickles(hub, base, tmp_path):
    command = f"""
from pathlib import Path
from cream.data.hub import count_parameters, model_folder
from cream.models.loading import fetch_base, save_model
print(count_parameters("owner/chat", "{COMMIT}"))
print(*sorted(file.name for file in model_folder("owner/chat", "{COMMIT}").iterdir()))
save_model(*fetch_base("owner/chat", "{COMMIT}"), "{tmp_path / 'm0'}")
"""
    done = run_with_hub(hub, tmp_path / "home", command)
    assert done.returncode == 0, done.stderr
    count, files = done.stdout.strip().splitlines()
    assert int(count) == count_parameters(base) == count_parameters(tmp_path / "m0")
    assert "model.safetensors" in files and not {"pytorch_model.bin", "consolidated.safetensors"} & {*files.split()}
    assert (tmp_path / "m0" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "wanted, says",
    [
        ({"base": "owner/gated", "revision": COMMIT}, "owner/gated is gated"),
        ({"base": "owner/chat", "revision": "b" * 40}, "owner/chat has no commit"),
    ],
)
def test_the_check_before_a_run_asks_the_hub(hub, tmp_path, wanted, says):
    command = f"""
import sys, yaml
from pathlib import Path
params = yaml.safe_load(Path("profiles/test.yaml").read_text())
params["model"] |= {wanted!r}
Path("{tmp_path}/params.yaml").write_text(yaml.safe_dump(params))
import os
os.chdir("{tmp_path}")
from cream.pipeline.check import main
main()
"""
    done = run_with_hub(hub, tmp_path / "home", command)
    assert done.returncode == 1 and done.stderr.startswith(says) and len(done.stderr.strip().splitlines()) == 1
