import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cream.data.errors import InputError
from cream.data.files import atomic_write, read_rows, seed_for, write_json, write_rows

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=4))
def test_rows_come_back_as_they_were_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_line_separators_inside_text_do_not_split_a_row(tmp_path):
    rows = [{"text": "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh\ni\r\nj"}, {"text": "日本語 é"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_rows_are_one_json_object_a_line_in_utf_8(tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"b": "é", "a": 1}, {}])
    assert (tmp_path / "rows.jsonl").read_bytes() == '{"b": "é", "a": 1}\n{}\n'.encode()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": ', "is not JSON"),
        ("", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('{"a": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"a": ' + "[" * 10**5, "is not JSON"),
        ('{"a": ["\\ud83d"]}', r"holds '\\ud83d', half of a character"),
        ('{"\\uDE00": "a"}', r"holds '\\ude00', half of a character"),
        ("null", "is not a JSON object"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": 1}}\n{{"id": 2}}\n{line}\n{{"id": 4}}\n')
    with pytest.raises(InputError, match=rf"rows\.jsonl, line 3 {message}.*: mend or remove that line"):
        read_rows(path)


def test_whole_characters_and_the_mark_of_windows_editors_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"a": "\\ud83d\\ude00\\u0000é"}\r\n'.encode())
    assert read_rows(path) == [{"a": "😀\0é"}]


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes('{"a": "é"}'.encode("utf-16"))
    with pytest.raises(InputError, match=r"rows\.jsonl is not UTF-8 text: save it as UTF-8"):
        read_rows(tmp_path / "rows.jsonl")


def test_json_files_are_readable_and_end_with_a_newline(tmp_path):
    write_json(tmp_path / "x.json", {"name": "é", "values": [1, 2.5]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "é", "values": [1, 2.5]}
    assert "é" in text and text.endswith("}\n") and text.count("\n") > 2


def test_folders_on_the_way_are_made(tmp_path):
    write_rows(tmp_path / "a" / "b" / "rows.jsonl", [{"id": 1}])
    assert read_rows(tmp_path / "a" / "b" / "rows.jsonl") == [{"id": 1}]


def test_a_file_appears_only_when_the_block_has_ended(tmp_path):
    path = tmp_path / "x.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_a_row_that_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"id": 1}])
    with pytest.raises(TypeError):
        write_rows(path, [{"id": 2}, {"id": object()}])
    assert read_rows(path) == [{"id": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_failed_folder_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    with pytest.raises(OSError):
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            (temporary / "weights").write_text("new")
            raise OSError("disk full")
    assert (folder / "weights").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_whole_folder_replaces_the_old_one(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale").write_text("old")
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("new")
    assert [file.name for file in folder.iterdir()] == ["weights"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_an_interrupted_run_left_is_cleared(tmp_path):
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / "stale").write_text("half")
    with atomic_write(tmp_path / "model") as temporary:
        temporary.mkdir()
    assert list((tmp_path / "model").iterdir()) == []


def test_seeds_are_stable_and_differ_by_seed_and_stage():
    assert seed_for(1, "sample-m1") == 3036732655  # the first 8 hex digits of: printf '1 sample-m1' | sha256sum
    seeds = {seed_for(seed, stage) for seed in (0, 1, 11) for stage in ("sample-m1", "sample-m2", "1 sample-m1", "sft")}
    assert len(seeds) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)
