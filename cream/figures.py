"""One look for every figure: seaborn's colour-blind palette, drawn as SVG that is the same bytes each time."""

import matplotlib
import seaborn as sns
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
