import pandas as pd
import pytest
import torch

from cream.methods import METHODS

columns = pytest.mark.parametrize("column", [pd.Series, torch.tensor])


@columns
def test_srlm_trusts_every_pair(column):
    assert METHODS["srlm"](column([0.0, 0.5, 1.0])).tolist() == [1, 1, 1]


@columns
def test_cream_gives_every_pair_the_mean_consistency(column):
    assert METHODS["cream"](column([0.2, 0.4, 0.9])).tolist() == pytest.approx([0.5] * 3)
