"""The gap before a round and the change after it, and the model that self-agreement keeps."""

import pandas as pd
import pytest

from cream.report import when

COLUMNS = "profile settings seed model method start round accuracy self_agreement gap reversed_share".split()
ROWS = [
    ("default", "a", 1, "m1", "M1", "m0", 1, 0.4, 0.7, None, None),
    ("default", "a", 1, "srlm-m2", "SRLM", "m1", 2, 0.9, 0.8, 0.3, 0.0),
    ("default", "a", 1, "srlm-m3", "SRLM", "srlm-m2", 3, 0.2, 0.6, 0.1, 0.0),  # the gap was wrong
    ("default", "a", 1, "official-m2", "CREAM first round official", "m1", 2, 0.1, 0.5, 0.3, 1.0),  # reversed
    ("default", "a", 2, "m1", "M1", "m0", 1, 0.5, 0.9, None, None),
    ("default", "a", 2, "srlm-m2", "SRLM", "m1", 2, 0.3, 0.8, -0.2, 0.0),
    ("default", "a", 2, "vote-m2", "SRLM by vote", "m1", 2, 0.4, 0.95, -0.1, 0.0),
]


def rows_of(tmp_path):
    table = pd.DataFrame(ROWS, columns=COLUMNS)
    table.to_csv(tmp_path / "seeds.csv", index=False)
    (tmp_path / "sweeps").mkdir()
    swept = table[table.seed == 1].assign(**{"settings": "b", "dpo.beta": 0.1})[["profile", "settings", "dpo.beta", *COLUMNS[2:]]]
    # The sweep holds a value that is the default's: the same runs, which count once.
    same = table[table.seed == 2].assign(**{"dpo.beta": 1.0})[swept.columns]
    pd.concat([swept, same]).to_csv(tmp_path / "sweeps" / "dpo.beta.csv", index=False)
    return when.all_rows(tmp_path)


def test_the_rows_of_all_files_are_there_once(tmp_path):
    rows = rows_of(tmp_path)
    assert len(rows) == 7 + 4
    assert rows.kind.unique().tolist() == ["default", "default, dpo.beta"]
    assert sorted(rows.run.unique()) == ["a 1", "a 2", "b 1"]
    assert when.all_rows(tmp_path / "nowhere").empty


def test_gap_and_change_by_hand(tmp_path):
    trained = when.trainings(rows_of(tmp_path)).set_index(["run", "model"])
    assert trained.change.to_dict() == pytest.approx({
        ("a 1", "srlm-m2"): 0.5, ("a 1", "srlm-m3"): -0.7, ("a 2", "srlm-m2"): -0.2, ("a 2", "vote-m2"): -0.1,
        ("b 1", "srlm-m2"): 0.5, ("b 1", "srlm-m3"): -0.7,
    })  # fmt: skip
    assert trained.agrees.to_dict() == {pair: pair[1] != "srlm-m3" for pair in trained.index}
    share, low, high = when.signs(trained.reset_index())
    assert share == pytest.approx(4 / 6) and 0.5 <= low < share < high <= 1


def test_the_kept_model_is_that_of_the_highest_self_agreement(tmp_path):
    kept = when.kept(rows_of(tmp_path)).set_index(["run", "method"])
    assert kept.loc[("a 1", "SRLM"), ["kept", "M1", "last", "best", "accuracy"]].tolist() == [2, 0.4, 0.2, 0.9, 0.9]
    assert kept.loc[("a 2", "SRLM"), ["kept", "last", "best", "accuracy"]].tolist() == [1, 0.3, 0.5, 0.5]
    assert kept.loc[("a 2", "SRLM by vote"), ["kept", "best", "accuracy"]].tolist() == [2, 0.5, 0.4]
    assert when.kept(when.all_rows(tmp_path / "nowhere")).empty and when.trainings(when.all_rows(tmp_path / "nowhere")).empty


def test_where_all_signs_agree_the_interval_is_that_of_so_many_runs(tmp_path):
    trained = when.trainings(rows_of(tmp_path))
    agreeing = trained[trained.model != "srlm-m3"]
    # Wilson by hand for 3 of 3: z^2 / (3 + z^2) = 3.8415 / 6.8415 is what the lower end lacks.
    assert when.signs(agreeing) == pytest.approx((1, 1 - 3.8415 / 6.8415, 1), abs=1e-4)
