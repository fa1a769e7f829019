"""One look for every figure and table, the same bytes each time: seaborn's colour-blind palette, drawn as SVG."""

import matplotlib
import seaborn as sns
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats


def use_style():
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    matplotlib.rcParams.update(
        {
            "figure.figsize": (7, 3.2),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "cream",
        }
    )
    set_matplotlib_formats("svg", metadata={"Date": None})


def show_table(table, caption, precision):
    """A captioned table in a notebook; its id comes from the caption, since pandas' own is random."""
    styled = table.rename_axis(index=None, columns=None).style.set_caption(caption)
    display(styled.format(precision=precision, na_rep="–").set_uuid(caption[:12].replace(" ", "-")))
