"""One look for every figure and table, the same bytes each time: seaborn's colour-blind palette, drawn as SVG."""

import base64
import io
import itertools
import re
from html import escape

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from cream.data.files import atomic_write
from cream.report.statistics import is_far

MOST_LINES = 8  # in one pair of axes; more are drawn a panel each
# Of methods, in order. C3 and C5 look much like C1 on a dark page, C8 fades on any, and C7 is the grey of the controls.
COLOURS = ["C0", "C1", "C2", "C4", "C9", "C3", "C5", "C6"]


def use_style():
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    matplotlib.rcParams.update(
        {
            "figure.figsize": (6, 2.9),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "cream",
            "text.parse_math": False,  # a dollar sign in a name is one
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})
    plt.uninstall_repl_displayhook()  # a cell's figures are drawn when it shows them, and not once before


def say(sentence):
    """A computed sentence, as HTML. Text that is not the project's own must come through `escape`."""
    display(HTML(f"<p>{sentence}</p>"))


def show_table(table, caption, precision, folded=False, texts=()):
    """A captioned table in a notebook, its texts shown as they are; its id comes from the caption, since pandas' own is
    random. A folded one shows its caption alone until it is opened. `texts` names columns of running text; the rows
    of such a table have no names."""
    styled = table.rename_axis(index=None, columns=None).style
    styled = styled.format(precision=precision, na_rep="–", escape="html").set_uuid(re.sub(r"\W+", "-", caption)[:40])
    styled = styled.format_index(escape="html").format_index(escape="html", axis=1)
    if texts:
        look = {"text-align": "left", "white-space": "pre-wrap", "min-width": "7rem"}
        styled = styled.set_properties(subset=list(texts), **look).hide()
    kind = "table texts" if texts else "table"
    if folded:
        show_folded(caption, f'<div class="{kind}">{styled.to_html()}</div>')
    else:
        display(HTML(f'<div class="{kind}">{styled.set_caption(escape(caption)).to_html()}</div>'))


def show_folded(summary, html):
    display(HTML(f"<details><summary>{escape(summary)}</summary>{html}</details>"))


def show_figures(*figures, path=None):
    """Figures next to each other, below each other where the page is narrow. Each comes with the text that stands for
    it; `path` keeps the first as a file."""
    drawn = []
    for figure, text in figures:
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        plt.close(figure)
        encoded = base64.b64encode(svg.getvalue().encode()).decode()
        drawn.append((svg.getvalue(), f'<img src="data:image/svg+xml;base64,{encoded}" alt="{escape(text)}">'))
    display(HTML(f'<div class="figures">{"".join(image for _, image in drawn)}</div>'))
    if path:
        with atomic_write(path) as temporary:
            temporary.write_text(drawn[0][0], encoding="utf-8")


def styles_of(names):
    """How the line of each method is drawn, the same on every page: the controls grey, the methods in colours."""
    methods = [name for name in names if "control" not in name]
    colours = dict(zip(methods, itertools.cycle(COLOURS)))
    return {
        name: {"color": colours.get(name, "0.25" if "key" in name else "0.5"), "marker": "o", "markersize": 4,
               "linestyle": "-" if name in colours else "--"}
        for name in names
    }  # fmt: skip


def by_round(lines, rounds, table, ylabel, level=None, width=5.6, responses=False):
    """A figure of `table` (one row a model, with value, low, high) over rounds: a line a method (`lines`: {method: its
    models}), its name at its end, and its interval as a band. `level` is a dotted line. With `responses`, the models are
    those whose responses the values are of."""
    if table.empty:
        return nothing()
    styles = styles_of(lines)
    lines = {name: [model for model in models if model in table.index] for name, models in lines.items()}
    # The first model of a line is another method's, or M1: alone it is no line.
    lines = {name: models for name, models in lines.items() if len(models) > 1} or {"": list(table.index)[:1]}
    panels = list(lines) if len(lines) > MOST_LINES else [None]
    columns = min(len(panels), 3)
    size = (width, 0.62 * width) if panels == [None] else (6.4, 0.6 + 1.4 * -(-len(panels) // columns))
    figure, grid = plt.subplots(
        -(-len(panels) // columns), columns, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    drawn = table.loc[list(dict.fromkeys(sum(lines.values(), [])))]
    controls = [model for name in lines if "control" in name for model in lines[name]]  # they show the scale
    far = is_far(drawn.value) & ~drawn.index.isin(controls)
    _limit(grid[0, 0].set_ylim, drawn, far, *([] if level is None else [level]))
    first = min(rounds[models[0]] for models in lines.values())
    last = max(rounds[models[-1]] for models in lines.values())
    for axes, name in zip(grid.flat, panels):
        if level is not None:
            axes.axhline(level, color="0.6", linestyle=":", linewidth=1)
        for line in lines:
            if name not in (None, line):
                _line(axes, rounds, table.loc[lines[line]], {"color": "0.85"}, band=False)
        for line in lines if name is None else [name]:
            _line(axes, rounds, table.loc[lines[line]], {**styles.get(line, {"color": "C0", "marker": "o"}), "zorder": 3})
            if far.any():
                _mark_if_outside(axes, rounds[lines[line][-1]], table.value[lines[line][-1]])
        axes.set(xticks=range(first, last + 1), xticklabels=[f"M{r}" for r in range(first, last + 1)])
        if name is not None:
            axes.set_title(name, fontsize=9)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    if panels != [None]:
        figure.supylabel(ylabel, fontsize="medium")
        figure.supxlabel("whose responses" if responses else "model", fontsize="medium")
    else:
        axes = grid[0, 0]
        axes.set(ylabel=ylabel, xlabel="whose responses" if responses else "model")
        axes.set_xlim(first - 0.15, last + 0.15)
        # A line that ends outside the axes has its name at their edge.
        ends = {line: (rounds[models[-1]], table.value[models[-1]]) for line, models in lines.items() if line}
        if far.any():
            ends = {line: (x, np.clip(y, *axes.get_ylim())) for line, (x, y) in ends.items()}
        _label_ends(axes, ends, styles)
    return figure


def _mark_if_outside(axes, x, value):
    low, high = axes.get_ylim()
    if not low <= value <= high:
        arrow, y, align = ("↓", low, "bottom") if value < low else ("↑", high, "top")
        axes.text(x, y, f"{arrow} {value:.2f}", fontsize=8, ha="right", va=align)


def nothing():
    figure, axes = plt.subplots(figsize=(4, 1))
    axes.set_axis_off()
    axes.text(0.5, 0.5, "not known in this run", ha="center", va="center")
    return figure


def _line(axes, rounds, table, style, band=True):
    x = [rounds[model] for model in table.index]
    axes.plot(x, table.value, **style)
    if band and len(x) > 1:
        axes.fill_between(x, table.low, table.high, color=style["color"], alpha=0.13, linewidth=0)
    elif band:
        axes.vlines(x, table.low, table.high, color=style["color"])


def _label_ends(axes, ends, styles):
    """The names of lines behind their last points, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    gap = 15 / (72 * axes.figure.get_figheight() * 0.8) * abs(high - low)
    for x in sorted({x for x, _ in ends.values()}):
        names = sorted((name for name in ends if ends[name][0] == x), key=lambda name: ends[name][1])
        placed = np.array([ends[name][1] for name in names])
        for _ in range(200):  # neighbours that are too near push each other away, half of the way each
            push = np.clip(gap - np.diff(placed), 0, None) / 2
            placed += np.r_[0, push] - np.r_[push, 0]
        for name, y in zip(names, placed):
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(7, 0), va="center", fontsize=9,
                          color=styles[name]["color"], annotation_clip=False)  # fmt: skip


def by_ranker(tables, lines, rounds, ylabel):
    """A figure for each of these lines of how well several rankers do on the same responses: a line a ranker (`tables`:
    {ranker: a table as `by_round` takes}), over the models whose responses they rank."""
    styles = {name: {"color": f"C{k}", "marker": "os^Dv"[k % 5], "markersize": 4} for k, name in enumerate(tables)}
    values = pd.concat(table[table.index.isin(sum(lines.values(), []))] for table in tables.values())
    margin = 0.05 * (values.high.max() - values.low.min())
    figures = []
    for title, models in lines.items():
        figure, axes = plt.subplots(figsize=(4.3, 3))
        axes.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
        axes.set_ylim(values.low.min() - margin, values.high.max() + margin)
        ends = {}
        for name, table in tables.items():
            there = table.loc[[model for model in models if model in table.index]]
            if len(there):
                _line(axes, rounds, there, styles[name])
                ends[name] = rounds[there.index[-1]], there.value.iloc[-1]
        x = sorted({rounds[model] for model in models})
        axes.set(xticks=x, xticklabels=[f"M{r}" for r in x], xlim=(x[0] - 0.2, x[-1] + 0.2))
        axes.set(xlabel="whose responses", ylabel=ylabel)
        axes.set_title(title, fontsize=10)
        _label_ends(axes, ends, styles)
        figures.append(figure)
    return figures


def by_step(curves, lines, rounds, column, ylabel):
    """A figure of the trainings' curves, a panel a round and a line a method; each point is the mean of the last steps, a
    tenth of the training."""
    styles, numbers = styles_of(lines), sorted({rounds[model] for model in curves.model})
    figure, grid = plt.subplots(1, len(numbers), figsize=(6.4, 2.8), sharey=True, squeeze=False)
    for axes, number in zip(grid[0], numbers):
        for name, models in lines.items():
            for model in (model for model in models[1:] if rounds[model] == number):
                curve = curves[curves.model == model]
                smooth = curve[column].rolling(len(curve) // 10 + 1, min_periods=1).mean()
                axes.plot(curve.step, smooth, **{**styles[name], "marker": None}, label=name)
        axes.set_title(f"M{number}", fontsize=10)
    grid[0, 0].set_ylabel(ylabel)
    figure.supxlabel("step", fontsize="medium")
    handles = {label: line for axes in grid[0] for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def forest(tables, colours, level=0.0, width=5.6):
    """A figure with a row for each row of the tables (value, low, high): a point and its interval, a panel a table
    ({label of the axis: table}). Rows that are missing in a later table stay empty there. What is far from all else is an
    arrow and its numbers."""
    names = list(next(iter(tables.values())).index)
    figure, grid = plt.subplots(
        1, len(tables), figsize=(width, 0.9 + 0.24 * len(names)), sharey=True, squeeze=False
    )
    for axes, (xlabel, table) in zip(grid[0], tables.items()):
        far = is_far(table.value)
        _limit(axes.set_xlim, table, far, level)
        axes.axvline(level, color="0.6", linestyle=":", linewidth=1)
        for row, beyond in zip(table.itertuples(), far):
            y = names.index(row.Index)
            if beyond:
                _arrow(axes, row, y, left=row.value < level)
                continue
            axes.plot([row.low, row.high], [y, y], color=colours[y], linewidth=1.5)
            axes.plot([row.value], [y], "o", color=colours[y], markersize=5)
        _rows(axes, names, xlabel if len(tables) == 1 else "")
        axes.set_xlabel("" if len(tables) == 1 else xlabel)
    return figure


def _limit(set_limits, table, far, *more):
    """An axis over the intervals of what is not far; as it is where nothing is."""
    if far.any():
        ends = [*table[["low", "high"]].to_numpy()[~far].ravel(), *more]
        margin = 0.05 * (np.nanmax(ends) - np.nanmin(ends))
        set_limits(np.nanmin(ends) - margin, np.nanmax(ends) + margin)


def _arrow(axes, row, y, left):
    numbers = f"{row.value:.3g} ({row.low:.3g} to {row.high:.3g})".replace("-", "−")
    arrow, x, align = (f"← {numbers}", 0.01, "left") if left else (f"{numbers} →", 0.99, "right")
    axes.text(x, y, arrow, color="0.3", fontsize=8, ha=align, va="center", transform=axes.get_yaxis_transform())


def two_sided(left, right, names, xlabel, width=5.6):
    """A figure with a row a name: bars to the left and to the right of 0, each with its number."""
    figure, axes = plt.subplots(figsize=(width, 0.9 + 0.24 * len(names)))
    for values, sign, colour in ((left, -1, "C3"), (right, 1, "C2")):
        bars = axes.barh(range(len(names)), sign * np.asarray(values), color=colour, height=0.7)
        axes.bar_label(bars, [f"{value}" for value in values], padding=3, fontsize=8)
    axes.axvline(0, color="0.3", linewidth=1)
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    _rows(axes, names, xlabel)
    return figure


def slope_chart(texts, left, right, correct, titles, width=6.5):
    """A figure of two rankings of the same N responses (`left` and `right`: their scores): a line each, from its rank in
    one to its rank in the other, the best on top; equal scores share their mean rank. `correct` holds 1, 0 or NaN (not
    known). Lines that are equal in all are drawn once, with their number; a name is the end of the text, where the answer is."""
    lines = pd.DataFrame({"text": texts, "left": left, "right": right, "correct": np.nan_to_num(correct, nan=2)})
    lines[["left", "right"]] = lines[["left", "right"]].rank(ascending=False)
    lines["number"] = range(1, len(lines) + 1)
    lines = lines.groupby(["text", "left", "right", "correct"], sort=False).number.agg(["min", "count"]).reset_index()
    figure, axes = plt.subplots(figsize=(width, 1.2 + 0.3 * len(texts)))
    axes.set(xticks=[0, 1], xticklabels=titles, xlim=(-0.1, 1.1), yticks=range(1, len(texts) + 1), ylabel="rank")
    axes.set_ylim(len(texts) + 0.5, 0.5)
    ends, styles = {}, {}
    for line in lines.itertuples():
        name = " ".join("".join(letter if letter.isprintable() else " " for letter in line.text).split())
        name = f"{line.min}: {'…' * (len(name) > 30)}{name[-30:]}" + f" (× {line.count})" * (line.count > 1)
        ends[name], styles[name] = (1, line.right), {"color": ("C3", "C2", "0.5")[int(line.correct)]}
        axes.plot([0, 1], [line.left, line.right], "o-", **styles[name])
    _label_ends(axes, ends, styles)
    for colour, word, value in (("C2", "right", 1), ("C3", "wrong", 0), ("0.5", "not known", 2)):
        if (lines.correct == value).any():
            axes.plot([], [], "o-", color=colour, label=word)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def dots(tables, names, xlabel, width=5.6):
    """A figure with a row a name and a dot of each table's value: {what: values}, joined by a line."""
    figure, axes = plt.subplots(figsize=(width, 1.1 + 0.24 * len(names)))
    axes.axvline(0, color="0.6", linestyle=":", linewidth=1)
    values = np.array(list(tables.values()), dtype=float)
    axes.hlines(range(len(names)), values.min(0), values.max(0), color="0.8")
    for k, (what, row) in enumerate(tables.items()):
        axes.plot(row, range(len(names)), "os"[k % 2], color=("C2", "C3")[k % 2], markersize=5, label=what)
    _rows(axes, names, xlabel)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def _rows(axes, names, xlabel):
    axes.figure.supxlabel(xlabel, fontsize="medium")  # below the names too: the axes may be narrower than it
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
