"""A judge that compares two answers: a model of this machine, or any endpoint that speaks OpenAI's protocol.

Every reply is kept in `.cache/judge/` as it comes, by what was asked of whom: nothing is asked twice.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import cache, partial, reduce
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
from tqdm import tqdm

from cream.data.errors import InputError
from cream.data.hub import first_line, model_folder
from cream.inference.rankers import next_words
from cream.models.architectures import context_of
from cream.models.chat import chat_ids
from cream.models.loading import base_of, load_model, tokenizer_in
from cream.models.precision import dtype_of

# After MT-Bench's pairwise judge (Zheng et al. 2023, arXiv 2306.05685), in our words.
PROMPT = """\
Compare two answers to a user's question. The better one is more helpful, more relevant, correct where the other is not, and
clearer. Which of the two is shown first must not matter, nor which is longer.

[Question]
{question}

[Answer A]
{a}

[Answer B]
{b}

[Your verdict]
Write one line: "Verdict: A" if answer A is better, "Verdict: B" if answer B is better, "Verdict: tie" if they are equally good."""
AGAIN = '\nEnd with that line, as it is given here: "Verdict: A", "Verdict: B" or "Verdict: tie".'
VERDICTS = ("A", "B", "tie")

TIMEOUT = 120  # seconds for a reply
WAITS = (1, 4, 16)  # seconds before an endpoint that is busy, broken or silent is asked again
AT_ONCE = 8  # questions to an endpoint
BATCH = 16  # questions to a local model between two looks at what is kept


class Judge(NamedTuple):
    """`about`: what the results say of it. `settings`: all that its replies depend on, besides what it is asked. `ask`: from
    a list of messages to (number, {"reply": text, ...}) in any order, as they are done."""

    about: dict
    settings: list
    ask: Callable


def judge_named(name, model="", root=".", precision="auto"):
    """The judge of that name: an address such as http://localhost:8000/v1 and the name of its `model`, the folder of one
    (seen from `root`), or a Hub id with its commit, owner/name@commit."""
    if name.startswith(("http://", "https://")):
        return endpoint_judge(name, model)
    repo, _, commit = name.partition("@")
    if not Path(root, name).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name):
        raise InputError(
            f"there is no judge {name!r}: give the folder of a model, a Hub id with its commit, as "
            "owner/name@<40 hex digits>, or the address of an endpoint, as http://localhost:8000/v1"
        )
    folder = Path(root, name) if Path(root, name).is_dir() else model_folder(repo, commit, root)
    return local_judge(folder, name, precision)


def local_judge(folder, name, precision="auto"):
    """A model that is asked for no words: the verdict is the likeliest of the three as the line that it writes next. Where
    they have less than 1/2 together, it would have written something else, and has given none; nor has it where the answers
    are longer than it can read."""
    if not any((folder / file).exists() for file in ("config.json", "adapter_config.json")):
        raise InputError(f"the judge {name!r} is a folder without a model: give one that holds config.json and weights")
    if not base_of(folder).is_dir():
        raise InputError(f"the judge {name!r} is an adapter over {base_of(folder)}, which is not there: give a whole model")
    tokenizer = tokenizer_in(folder)
    if tokenizer.chat_template is None:
        raise InputError(f"the judge {name!r} has no chat template: take a chat model")
    dtype = dtype_of(precision)
    model = cache(partial(load_model, folder, dtype=dtype))  # loaded when it is first asked
    lines = [f"Verdict: {verdict}" for verdict in VERDICTS]

    def ask(messages):
        context = context_of(model().config) or math.inf
        lengths = [len(chat_ids(tokenizer, message, lines[-1])) for message in messages]
        fitting = [number for number, length in enumerate(lengths) if length <= context]
        yield from ((number, {"reply": "", "too_long": True}) for number in range(len(messages)) if number not in fitting)
        for batch in (fitting[start : start + BATCH] for start in range(0, len(fitting), BATCH)):
            chances = next_words(model(), tokenizer, [messages[number] for number in batch], lines).tolist()
            for number, p in zip(batch, chances):
                reply = lines[p.index(max(p))] if sum(p) >= 0.5 else ""
                yield number, {"reply": reply, "chances": [round(value, 4) for value in p]}

    about = {"name": name, "revision": _digest(folder), "precision": str(dtype).removeprefix("torch.")}
    return Judge(about, [about["revision"], about["precision"]], ask)


def endpoint_judge(address, model=""):
    """The chat model of that name (if it has but one: that one) at an endpoint, greedily. Its key comes from JUDGE_API_KEY in
    the environment, and goes nowhere but there."""
    parts = urlsplit(address)
    if parts.username or parts.password or parts.query:
        raise InputError("the judge's address holds more than a place: give its key in JUDGE_API_KEY in the environment")
    address, key = address.rstrip("/"), os.environ.get("JUDGE_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("JUDGE_API_KEY holds letters that a key cannot have: set it again")
    client = httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=TIMEOUT)
    send = partial(_send, client, address, key)
    settings = {"temperature": 0, "max_tokens": 512}
    listed = {_said(entry, "id"): entry for entry in _said(send("GET", "/models"), "data") or []}
    names = list(listed)
    if not model and len(names) != 1:
        raise InputError(f"the judge at {address} has {len(names)} models: name one in JUDGE_MODEL ({', '.join(names[:5])})")
    model = model or names[0]
    if names and model not in names:
        raise InputError(f"the judge at {address} has no model {model!r}: name another in JUDGE_MODEL ({', '.join(names[:5])})")

    def ask_one(message):
        body = {"model": model, "messages": [{"role": "user", "content": message}], **settings}
        answer = send("POST", "/chat/completions", json=body)
        if answer is None:
            return {"reply": "", "too_long": True}
        reply = _said(answer, "choices", 0, "message", "content") or ""
        return {"reply": reply, "model": answer.get("model"), "fingerprint": answer.get("system_fingerprint")}

    said = {what: listed[model][what] for what in ("root", "owned_by") if listed.get(model, {}).get(what)}
    about = {"name": model, "endpoint": address, "listed": said}
    return Judge(about, [address, model, settings], partial(_several_at_once, ask_one))


def verdicts(judge, comparisons, kept):
    """The verdict ("A", "B", "tie") on each (question, answer A, answer B), and how the asking went: how many were asked again
    or were too long, and what the replies say of the model that wrote them.

    A reply that cannot be read is asked for once more, in clearer words; where that one cannot be read either, there is
    no verdict (None). The folder `kept` holds every reply.
    """
    messages = [PROMPT.format(question=question, a=a, b=b) for question, a, b in comparisons]
    replies = ask_once(judge, messages, kept)
    unread = [i for i, reply in enumerate(replies) if read_verdict(reply["reply"]) is None and "too_long" not in reply]
    for i, reply in zip(unread, ask_once(judge, [messages[i] + AGAIN for i in unread], kept)):
        replies[i] = reply
    said = [{what: reply[what] for what in ("model", "fingerprint") if reply.get(what)} for reply in replies]
    said = [json.loads(text) for text in sorted({json.dumps(each, sort_keys=True) for each in said if each})]
    counts = {"asked_again": len(unread), "too_long": sum("too_long" in reply for reply in replies)}
    return [read_verdict(reply["reply"]) for reply in replies], {**counts, "replies_are_of": said}


def read_verdict(reply):
    """The verdict in the last line of a reply, whatever its marks; None where there is none."""
    lines = [line for line in re.sub(r"[*_`\"'\[\]]", "", reply).splitlines() if line.strip()] or [""]
    found = re.fullmatch(r"\s*(?:(?:final )?verdict\s*:)?\s*(?:answer )?(A|B|tie)\s*\.?\s*", lines[-1], re.IGNORECASE)
    return next(verdict for verdict in VERDICTS if verdict.lower() == found[1].lower()) if found else None


def ask_once(judge, messages, kept):
    """The judge's reply to each message. What it has been asked before is taken from the folder `kept`, to which each new
    reply is added as it comes: a run that is killed or fails asks for nothing again."""
    keys = [hashlib.sha256(json.dumps([judge.settings, message]).encode()).hexdigest() for message in messages]
    path = Path(kept, re.sub(r"[^\w.-]+", "-", judge.about["name"]) + ".jsonl")
    found = _replies_in(path)
    missing = {key: message for key, message in zip(keys, messages) if key not in found}
    asked = list(missing)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file, tqdm(total=len(missing), desc="judging", unit="verdict", disable=not missing) as bar:
        for number, reply in judge.ask(list(missing.values())) if missing else ():
            found[asked[number]] = reply
            if "too_long" not in reply:  # those are no replies: the same endpoint may read more when it is started again
                file.write(f"\n{json.dumps({'key': asked[number], **reply})}")  # on a line of its own, even behind half a one
                file.flush()
            bar.update()
    return [found[key] for key in keys]


def _replies_in(path):
    """{key: reply} of the lines that are whole: a run may have been killed while it wrote the last one."""
    found = {}
    for line in path.read_text().split("\n") if path.exists() else ():
        with suppress(ValueError):
            reply = json.loads(line)
            found[reply.pop("key")] = reply
    return found


def _several_at_once(ask_one, messages):
    """As they come. If one fails, those on their way are waited for, and then its error is raised."""
    pool, failed = ThreadPoolExecutor(AT_ONCE), None
    try:
        numbers = {pool.submit(ask_one, message): number for number, message in enumerate(messages)}
        for done in as_completed(numbers):
            if done.cancelled():
                continue
            if done.exception() is None:
                yield numbers[done], done.result()
            elif failed is None:
                failed = done.exception()
                for other in numbers:
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise failed


def _send(client, address, key, method, path, **body):
    """What the endpoint answers, as JSON; None where it says that a question is longer than its context. What passes (no
    answer, too many questions, a server's fault) is tried again."""
    for wait in (*WAITS, None):
        try:
            response = client.request(method, address + path, **body)
            if response.is_success:
                return response.json()
            if path == "/models" and response.status_code == 404:  # not every server has a list
                return {"data": []}
            if response.status_code == 400 and re.search("context.(length|size)", response.text):
                return None
            problem = f"it answers {response.status_code}, {' '.join(response.text.split())[:200]}"
            passes = response.status_code in (408, 429) or response.status_code >= 500
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise InputError(f"{address} is no address: give one such as http://localhost:8000/v1") from None
        except httpx.TransportError as error:
            problem, passes = f"{type(error).__name__}, {first_line(error)}", True
        except ValueError:
            problem, passes = "its answer is not JSON", False
        if not passes or wait is None:
            problem = problem.replace(key, "***") if key else problem
            raise InputError(
                f"the judge at {address} cannot be asked ({problem}): see to it (its key is JUDGE_API_KEY in the "
                "environment) and start again; what it has judged is kept"
            )
        time.sleep(wait)


def _said(answer, *path):
    """What is at that place of an answer."""
    try:
        return reduce(lambda part, step: part[step], path, answer)
    except (KeyError, IndexError, TypeError):
        raise InputError("the judge does not speak OpenAI's protocol: give the address of an endpoint that does") from None


def _digest(folder):
    """A hash of the files of a model, those of its M0 included if it is an adapter."""
    digest = hashlib.sha256()
    for file in (file for part in dict.fromkeys([base_of(folder), folder]) for file in sorted(part.iterdir())):
        if file.is_file():
            with open(file, "rb") as opened:
                digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
