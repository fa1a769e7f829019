"""Runs the notebook of a stage and keeps its page; cream/pipeline/stage.py starts it.

Papermill runs the notebook; what it writes are its outputs. The page is a leaf for people to read: no stage depends on
it. Progress goes to the terminal and stays off the page, as do run times, so that two runs give the same bytes.
"""

import argparse
import base64
import os
import re
import shutil
import sys
import time
import traceback
from html import escape
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from cream.data.errors import InputError
from cream.data.files import atomic_write, write_json
from cream.pipeline import pages, warm
from cream.pipeline.check import check_machine
from cream.pipeline.parameters import load_parameters

PAGE = Path(__file__).with_name("page.html")


def main():
    options = _options()
    stage = os.environ.get("DVC_STAGE") or options.page.stem
    failed = Path(".failed", f"{stage}.ipynb")
    failed.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        params = load_parameters("params.yaml")
        check_machine(params, ".")
        warm.end_with_parent()
        given = dict(pair.split("=", 1) for pair in options.parameters)
        notebook = _run(options.notebook, given, failed)
        _write_page(notebook, options, given)
        shutil.rmtree(Path(".parts", options.page.stem), ignore_errors=True)
        if options.page.parent.name == "stages":  # reports take seconds, and the index shows the times of what came before
            times = {"seconds": round(time.monotonic() - started, 1)}
            if options.page.stem.startswith("evaluate-"):  # where pages look; elsewhere torch may not be imported yet
                times["computed"] = pages.computed_here(params["precision"])
            write_json(Path("results", "times", f"{options.page.stem}.json"), times)
    except Exception as error:
        kept = f" The notebook as far as it came is {failed}." if failed.exists() else ""
        sys.exit(f"Stage {stage} failed{_reason(error)}\nWhat earlier stages made is as it was.{kept}")


def _options():
    parser = argparse.ArgumentParser("python -m cream.pipeline.stage", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("page", type=Path, help="the HTML page to write")
    parser.add_argument("parameters", nargs="*", metavar="name=value", help="parameters of the notebook")
    parser.add_argument("--no-input", action="store_true", help="leave the code out of the page")
    return parser.parse_args()


def _run(path, parameters, failed):
    """The executed notebook; its progress bars go to the terminal. If it fails, `failed` holds it as far as it came."""
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets.config import Config

    class Kernel(AsyncKernelManager):
        """The kernel of this interpreter, whatever kernels are installed by that name, as a fork where there is a server."""

        command = [os.path.abspath(sys.executable), "-m", "cream.pipeline.warm", "ipykernel_launcher", "-f", "{connection_file}"]
        kernel_spec = KernelSpec(argv=command, language="python")

    failed.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=warm.place_of_sockets()) as sockets:  # files of this stage's own in place of network ports
        notebook = papermill.execute_notebook(
            path,
            failed,
            parameters,
            kernel_name="python3",
            cwd=path.parent,
            kernel_manager_class=Kernel,
            progress_bar=False,
            stderr_file=sys.stderr,
            config=Config(KernelManager={"transport": "ipc", "ip": str(Path(sockets, "kernel"))}),
            extra_arguments=["--IPKernelApp.log_level=50"],  # else it reports its own shutdown as an error
        )
    failed.unlink(missing_ok=True)
    return notebook


def _write_page(notebook, options, given):
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    path, heading = options.page, options.page.stem
    if "injected-parameters" in [tag for cell in notebook.cells for tag in cell.metadata.tags]:  # as given, and not twice
        notebook.cells = [cell for cell in notebook.cells if "parameters" not in cell.metadata.tags]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # papermill gives the cell that it injects a random one
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)][-1]
            cell.source = _with_mathml(cell.source)
        else:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                _name_figure(output.get("data", {}), heading)
    exporter = HTMLExporter(template_name="basic", exclude_input=options.no_input, exclude_input_prompt=True)
    exporter.exclude_output_prompt, exporter.exclude_anchor_links = True, True
    body, _ = exporter.from_notebook_node(notebook)
    title = re.search(r"<h1[^>]*>(.*?)</h1>", body, re.DOTALL)
    stamped = path.parent.name != "stages"  # DVC shares the pages of stages between runs: they are of no single one
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=re.sub(r"<[^>]+>", "", title[1]) if title else path.stem,
        made_by=pages.made_by(options.notebook) if stamped else "",
        highlight=HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        navigation=pages.navigation(path),
        body=pages.with_contents(body),
        neighbours=pages.neighbours(path),
        stamp=escape(f"Made with {pages.stamp(options.notebook, given)}.") if stamped else "",
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _name_figure(data, heading):
    """A figure that comes without words of its own is called by the heading that it is under."""
    if "image/svg+xml" in data:
        encoded = base64.b64encode(data.pop("image/svg+xml").encode()).decode()
        text = escape(re.sub("[*`$]", "", heading))
        data["text/html"] = f'<img src="data:image/svg+xml;base64,{encoded}" alt="Figure: {text}">'


def _with_mathml(markdown):
    """LaTeX between dollar signs as MathML, which browsers draw without a script from elsewhere."""
    from latex2mathml.converter import convert

    markdown = re.sub(
        r"\$\$(.+?)\$\$", lambda found: convert(found.group(1).strip(), display="block"), markdown, flags=re.DOTALL
    )
    return re.sub(r"\$([^$\n]+)\$", lambda found: convert(found.group(1)), markdown)


def _reason(error):
    """Where and why: one sentence for bad input and a full disk, a traceback before it for anything else."""
    cell = f" in cell {error.exec_count}" if hasattr(error, "evalue") else ""
    kind, said = (error.ename, error.evalue) if cell else (type(error).__name__, str(error))
    if any(words in said for words in ("No space left", "os error 28", "Disk quota exceeded")):
        return f"{cell}: the disk is full; free some space and run again"
    if kind == InputError.__name__:
        return f"{cell}: {said}"
    print("\n".join(error.traceback) if cell else traceback.format_exc(), file=sys.stderr)
    return f"{cell}: {kind}: {said}"


if __name__ == "__main__":
    main()
