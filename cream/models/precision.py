"""In which dtype a processor computes fast, and bf16 on one that has no instruction for it."""

import os

import torch
from torch.nn.functional import linear


def dtype_of(precision):
    """The dtype of sampling, SFT and the judge by `precision` in params.yaml: "fp32", or "auto" for `fast_dtype`."""
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


def bf16_linear(layer, inputs):
    """A bf16 layer's product as a fast processor makes it, rounded after it is summed up in fp32: where torch has no
    instruction for that, its own way takes several times as long."""
    bias = None if layer.bias is None else layer.bias.float()
    return linear(inputs.float(), layer.weight.float(), bias).to(torch.bfloat16)
