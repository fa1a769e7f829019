"""In which precision to compute, and bf16 on a processor that has no instruction for it."""

import os
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def dtype_of(precision):
    """The dtype of sampling and of the judge by `precision` in params.yaml: "fp32", or "auto" for `fast_dtype`."""
    return torch.float32 if precision == "fp32" else fast_dtype()


def fast_dtype():
    """bf16 on a GPU and on a processor with wide enough vectors for it; fp32 on others, where torch's bf16 is slower by
    ten times and its backward pass by a hundred. CREAM_BF16=1 or 0 in the environment says which kind of processor to take
    this one for."""
    asked = os.environ.get("CREAM_BF16")
    if asked:
        return torch.bfloat16 if asked == "1" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if mkldnn else torch.float32


def in_effect(precision):
    """The precision that "auto" comes to on this machine; any other as it is."""
    return ("bf16" if fast_dtype() == torch.bfloat16 else "fp32") if precision == "auto" else precision


@contextmanager
def computing_in(precision):
    """While it lasts, matrix products of fp32 weights are made in that precision; what they give is summed up in fp32.

    "fp32"; "tf32", on a GPU, where the factors are rounded to 10 bits; "bf16", autocast, where factors and products are
    rounded to 7 bits; or "auto" for bf16 where that is fast, else fp32.
    """
    bf16 = in_effect(precision) == "bf16"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        with ExitStack() as contexts:
            if bf16:  # no autocast that is off around others: rounded weights are kept until the outermost one ends
                contexts.enter_context(torch.autocast(device, torch.bfloat16))
            slow = device == "cpu" and fast_dtype() != torch.bfloat16
            if bf16 and slow and not torch.is_grad_enabled():  # a checkpoint makes its tensors again without this
                contexts.enter_context(_RoundedProducts())
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class _RoundedProducts(TorchFunctionMode):
    """A linear layer's product as a processor with bf16 makes it, rounded after it is summed up in fp32: where torch has no
    instruction for that, its own way takes several times as long."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not linear:
            return function(*args, **(kwargs or {}))
        inputs, weight, *bias = (x if x is None else x.to(torch.bfloat16).float() for x in (*args, *(kwargs or {}).values()))
        with torch.autocast("cpu", enabled=False):
            return linear(inputs, weight, *bias).to(torch.bfloat16)
