"""The Hugging Face Hub: a repository at a pinned commit, its files checked, and what is wrong in one sentence."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import httpx, logging

from cream.data.errors import InputError

logging.set_verbosity_error()  # its retries without a network would hide the one sentence

# Weights as safetensors, the configuration and the tokenizer: no pickle is ever downloaded.
SMALL_FILES = ["*.json", "*.jinja", "*.model"]  # of a model: its configuration and its tokenizer
MODEL_FILES = [*SMALL_FILES, "*.safetensors"]
SECOND_COPIES = ["consolidated*", "original/*"]  # of the same weights, in their authors' own layout


def model_folder(base, revision, root="."):
    """The folder of a model: `base` itself if it is one (seen from `root`), else that of a Hub id at `revision`."""
    folder = Path(root) / Path(base).expanduser()
    if folder.is_dir():
        return folder
    if base.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {folder}")
    return fetch(base, revision, MODEL_FILES)


def fetch(repo, revision, files, kind="model"):
    """The local folder of `repo` ("owner/name") at the commit `revision`, with the files that match the patterns.

    What is in the local cache is not downloaded again, and HF_HUB_OFFLINE=1 takes all from there. Raises
    InputError if they cannot be had.
    """
    page = f"huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    try:
        wanted = {"allow_patterns": files, "ignore_patterns": SECOND_COPIES}
        folder = Path(snapshot_download(repo, repo_type=kind, revision=revision, **wanted))
    except GatedRepoError:
        raise InputError(
            f"{repo} is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{repo} has no commit {revision}: take one from {page}/commits/main") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"there is no {page} that this account may read: mend the name, or log in with `hf auth login`"
        ) from None
    except HFValidationError:
        raise InputError(f"{repo} is neither a folder nor the id of a Hub repository: mend it") from None
    except (OSError, httpx.HTTPError) as error:  # no network, HF_HUB_OFFLINE, no such file in the cache
        raise InputError(
            f"{repo} is not in the local cache at the commit {revision} and could not be downloaded "
            f"({first_line(error)}): connect this machine to huggingface.co, copy a cache "
            "here (HF_HOME), or name a local folder in params.yaml"
        ) from None
    for pattern in files:
        for file in folder.rglob(pattern):
            _check_hash(file)
    return folder


def count_parameters(repo, revision):
    """The number of weights of a model on the Hub, from the headers of its safetensors files."""
    try:
        return sum(get_safetensors_metadata(repo, revision=revision).parameter_count.values())
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        raise InputError(
            f"{repo} holds no safetensors weights at {revision}: take a repository that does"
        ) from None
    except (OSError, httpx.HTTPError) as error:
        raise InputError(
            f"the size of {repo} could not be asked for ({first_line(error)}): connect this machine to huggingface.co"
        ) from None


def first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_hash(file):
    """The cache names a large file's blob by the sha256 that the Hub gave for it."""
    expected = file.resolve().name
    if file.is_file() and re.fullmatch("[0-9a-f]{64}", expected):
        with open(file, "rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != expected:
                raise InputError(
                    f"{file.name} is not the file that was published (its sha256 differs): delete {file.resolve()}"
                )
