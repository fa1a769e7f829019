"""reports/architectures.md, a row a test: each holds, and is what is found now."""

import pytest
from architectures import ARCHITECTURES, PAGE, measure, table

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_row_of_the_table_is_what_is_found(name):
    row = measure(name)
    assert f"| {' | '.join(row.values())} |" in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_the_rows_of_the_architectures_alone():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    named = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert named == ["architecture", "---", *ARCHITECTURES] and len(ARCHITECTURES) >= 70
    row = dict.fromkeys(("architecture", "model type", "scoring", "writing", "LoRA", "vLLM"), "")
    assert PAGE.read_text(encoding="utf-8").startswith(table([row]).split("| architecture")[0])
