"""Draws the loop of CREAM: python docs/loop.py writes reports/loop.svg, the same bytes each time."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

# On a transparent ground: colours that can be read on white and on black.
GREY, BLUE, ORANGE = "#808890", "#3b8fd6", "#d9822b"
# Each box: its centre and size (the axes are 100 by 40), its text and the colour of its edge.
BOXES = [
    (6, 28, 12, 8, "M0\nchat model", GREY),
    (26, 28, 14, 8, "M1, then Mₜ\npolicy", GREY),
    (48.5, 28, 15, 8, "N responses\nto each prompt", GREY),
    (72, 35, 17, 8, "ranking K\nby Mₜ₋₁'s reward", ORANGE),
    (72, 21, 17, 8, "ranking J\nby Mₜ's reward", BLUE),
    (92.5, 28, 15, 8, "C: how far\nJ and K agree", GREY),
    (72, 5, 56, 8, "C · L(best > worst)  +  (1 − C) · L(worst > best)\nL is DPO's loss, its reference Mₜ", GREY),
    (26, 5, 14, 8, "Mₜ₊₁\nnext model", GREY),
]
# Each arrow: its start, its end, and the text at its middle.
ARROWS = [
    ((12, 28), (19, 28), "SFT"),
    ((33, 28), (41, 28), "sample"),
    ((56, 29), (63.5, 34), ""),
    ((56, 27), (63.5, 22), ""),
    ((80.5, 34), (87, 32), ""),
    ((80.5, 22), (87, 24), ""),
    ((72, 17), (72, 9), "pair: best and worst"),
    ((95, 24), (95, 9), "C"),
    ((44, 5), (33, 5), "train"),
    ((26, 9), (26, 24), "next round,\nnew prompts"),
]


def main():
    plt.rcParams.update({"svg.hashsalt": "cream", "font.size": 8, "text.color": GREY})
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.set(xlim=(-0.5, 100.5), ylim=(0.5, 39.5))
    axes.axis("off")
    for x, y, width, height, text, colour in BOXES:
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(FancyBboxPatch(corner, width, height, "round,pad=0,rounding_size=1.2", fc="none", ec=colour))
        axes.text(x, y, text, ha="center", va="center", linespacing=1.4)
    for start, end, text in ARROWS:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0})
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if start[0] == end[0]:
            axes.text(x + 1, y, text, ha="left", va="center", linespacing=1.4)
        else:
            axes.text(x, y + 1, text, ha="center", va="bottom")
    metadata = {"Date": None, "Title": "The loop of CREAM"}
    figure.savefig("reports/loop.svg", transparent=True, bbox_inches="tight", pad_inches=0.02, metadata=metadata)


if __name__ == "__main__":
    main()
