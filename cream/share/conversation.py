"""Talk to models of the run: in the terminal, or with `Conversation` in a notebook cell.

python -m cream.share.conversation m1 cream-m3
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch

from cream.data.errors import InputError
from cream.inference.sampling import generate
from cream.models.architectures import context_of
from cream.models.chat import turn_ids
from cream.models.loading import base_of, load_model, load_tokenizer
from cream.models.precision import dtype_of
from cream.pipeline.parameters import load_parameters, models_of


class Conversation:
    """What was said to the model in a folder, and what it answered. `settings` are those of `generate`, which is greedy
    unless they name a temperature."""

    def __init__(self, folder, dtype=torch.float32, max_new_tokens=256, **settings):
        self.model, self.tokenizer = load_model(folder, dtype=dtype), load_tokenizer(folder)
        self.settings, self.turns = {"max_new_tokens": max_new_tokens, **settings}, []

    def ask(self, message):
        """The answer to a message and all that was said before; an InputError where the model's context does not hold it."""
        turns = [*self.turns, {"role": "user", "content": message}]
        prompt, context = turn_ids(self.tokenizer, turns), context_of(self.model.config)
        most = self.settings["max_new_tokens"]
        if context is not None and len(prompt) + most > context:
            raise InputError(
                f"the conversation has {len(prompt)} tokens; with an answer of up to {most} it exceeds the model's context "
                f"of {context}: begin a new one"
            )
        [[response]] = generate(self.model, self.tokenizer, [prompt], **self.settings)
        self.turns = [*turns, {"role": "assistant", "content": response["text"]}]
        return response["text"]


def folder_of(params, model, root="."):
    """The folder of a model of this run; an InputError that lists those there are, where it is none of them."""
    there = [name for name in models_of(params) if Path(root, "models", name).is_dir()]
    if model not in there:
        others = f"name one of {', '.join(there)}" if there else "run `make repro`, or `dvc pull` from a remote"
        raise InputError(f"there is no model {model!r}: {others}")
    folder = Path(root, "models", model)
    if not base_of(folder).is_dir():
        raise InputError(f"{model} is an adapter over m0, which is not there: run `make repro`, or `dvc pull` from a remote")
    return folder


def main():
    import readline  # noqa: F401  what input() reads can then be edited

    try:
        talk(load_parameters("params.yaml"), sys.argv[1:] or [""])
    except InputError as error:
        sys.exit(str(error))


def talk(params, models):
    """Prints the answer of each model to what the user writes, until an empty line or the end of the input."""
    dtype, most = dtype_of(params["precision"]), params["sampling"]["max_new_tokens"]
    conversations = {model: Conversation(folder_of(params, model), dtype, most) for model in models}
    print(f"Greedy answers of up to {most} tokens; `new` begins anew, an empty line or Ctrl-D ends.")
    with suppress(EOFError, KeyboardInterrupt):
        while message := input("you: ").strip().encode(errors="replace").decode():
            for model, conversation in conversations.items():
                if message == "new":
                    conversation.turns = []
                else:
                    print(f"{model}: {_answer(conversation, message)}")


def _answer(conversation, message):
    try:
        return conversation.ask(message)
    except InputError as error:
        return f"({error})"


if __name__ == "__main__":
    main()
