"""One stage that goes well or fails: what it says, what it keeps, and that its page shows texts as texts."""

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
HOSTILE = '</td></pre><script>alert(1)</script><img src=x onerror=alert(1)><think>2 & 3 | `4` $x$ *b* \x1b[31m'


@pytest.fixture
def folder(tmp_path, warm):
    shutil.copy(ROOT / "profiles" / "test.yaml", tmp_path / "params.yaml")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "cream").symlink_to(ROOT / "cream")
    return tmp_path


def stage(folder, *cells, **environment):
    """Runs these cells (text, or ("markdown", text)) as the notebook of a stage."""
    code, markdown = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    notebook = nbformat.v4.new_notebook(
        cells=[markdown(cell[1]) if isinstance(cell, tuple) else code(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    nbformat.write(notebook, folder / "notebooks" / "some.ipynb")
    command = [sys.executable, "-m", "cream.pipeline.stage", "notebooks/some.ipynb", "reports/some.html"]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.attributes += [name for name, _ in attributes]


def test_bad_input_is_one_sentence_and_the_notebook_is_kept(folder):
    wrong = "from cream.data.errors import InputError\nraise InputError('line 3 is wrong: mend it')"
    done = stage(folder, "print('as far as here')", wrong, "print('not here')", DVC_STAGE="rank@m1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Stage rank@m1 failed in cell 2: line 3 is wrong: mend it",
        "What earlier stages made is as it was. The notebook as far as it came is .failed/rank@m1.ipynb.",
    ]
    kept = nbformat.read(folder / ".failed" / "rank@m1.ipynb", as_version=4)
    outputs = [output for cell in kept.cells for output in cell.get("outputs", [])]
    assert [output.get("text", output.get("ename")) for output in outputs] == ["as far as here\n", "InputError"]
    assert not (folder / "reports").exists()

    assert stage(folder, "1 + 1", DVC_STAGE="rank@m1").returncode == 0  # mended: nothing of the failure is left
    assert not (folder / ".failed" / "rank@m1.ipynb").exists() and (folder / "reports" / "some.html").exists()


def test_any_other_fault_keeps_its_traceback(folder):
    done = stage(folder, "def inner():\n    int('x')\n\n\ninner()")
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr and "inner" in done.stderr
    assert "Stage some failed in cell 1: ValueError: " in done.stderr.splitlines()[-2]
    assert ".failed/some.ipynb" in done.stderr.splitlines()[-1] and (folder / ".failed" / "some.ipynb").exists()


def test_a_fault_outside_the_cells_keeps_its_traceback_too(folder):
    (folder / "reports").write_text("a file where the folder must be")
    done = stage(folder, "1")
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr
    assert "Stage some failed: " in done.stderr.splitlines()[-2] and ".failed" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_sentence(folder):
    done = stage(folder, "open('/dev/full', 'w').write(10**5 * 'x')")
    assert done.stderr.splitlines()[0] == "Stage some failed in cell 1: the disk is full; free some space and run again"
    assert len(done.stderr.splitlines()) == 2


def test_texts_of_models_and_users_are_shown_as_texts(folder):
    done = stage(
        folder,
        ("markdown", "# A page\n\nThe loss is $x^2$."),
        f"text = {HOSTILE!r}",
        "import pandas as pd\npd.DataFrame({text: [text]}, index=[text])",
        "print(text)",
        "import sys\nprint(text, file=sys.stderr)",
        "[text, {text: text}]",
        "from cream.report.figures import show_folded, show_table",
        "show_table(pd.DataFrame({text: [text, None]}), text, 2, texts=[text])",
        "from html import escape\nshow_folded(text, '<pre>' + escape(text) + '</pre>')",
    )
    assert done.returncode == 0, done.stderr
    page = (folder / "reports" / "some.html").read_text(encoding="utf-8")
    tags = Tags(page)
    assert not {"script", "img", "think"} & {*tags.found}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert page.count("&lt;think&gt;2 &amp; 3 | `4` $x$ *b*") >= 9
    assert tags.found.count("math") == 1  # that of the Markdown cell, and no other between dollar signs


def test_a_figure_is_scaled_and_called_by_its_heading(folder):
    draw = "import matplotlib.pyplot as plt\nfrom cream.report.figures import use_style\nuse_style()\n"
    done = stage(
        folder,
        ("markdown", "# A page"),
        ("markdown", "Words.\n\n## Training < `now`\n\nMore words."),
        draw + "plt.plot([1, 2])\nplt.title('cost $5 & $\\\\frac and <b>');",
    )
    assert done.returncode == 0, done.stderr
    page = (folder / "reports" / "some.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 1 and 'alt="Figure: Training &lt; now"' in page and "No description" not in page
    assert "svg, img { max-width: 100%; height: auto; }" in page
    assert 'name="made-by" content="notebooks/some.ipynb ' in page and " cores, " in page.split("<footer>")[1]


def test_another_python3_kernel_changes_nothing(folder):
    kernels = folder / "elsewhere" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    other = {"argv": ["/bin/false"], "display_name": "R", "language": "R", "env": {"FOREIGN": "yes"}}
    (kernels / "kernel.json").write_text(json.dumps(other))
    says = "import os, sys\nprint(sys.prefix, os.environ.get('FOREIGN'))"
    done = stage(folder, says, JUPYTER_PATH=str(folder / "elsewhere"))
    assert done.returncode == 0, done.stderr
    assert f"{sys.prefix} None" in (folder / "reports" / "some.html").read_text(encoding="utf-8")
