"""Bar 1's figures: solid background, so that they read in light and dark pages; large type, so that phones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.bar1.report import CURVE
from experiments.bar1.seeds import mean

COLOURS = {"sft": "#9a9a9a", "sft_tuned": "#5c5c5c", "forward_kl": "#d98200", "js": "#0072b2", "reverse_kl": "#00876c"}
LABELS = {
    "sft": "SFT",
    "sft_tuned": "SFT, best decoding",
    "forward_kl": "forward KL",
    "js": "JS",
    "reverse_kl": "reverse KL",
}
STYLE: dict[Any, Any] = {
    "font.size": 14,
    "svg.hashsalt": "bar1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def draw_all(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write bar1.svg and bar1-curves.svg; bytes depend on the numbers alone."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    made = []
    with matplotlib.rc_context(STYLE):
        for name, draw in (("bar1.svg", draw_main), ("bar1-curves.svg", draw_curves)):
            figure = draw(results)
            figure.savefig(folder / name, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            made.append(folder / name)
    return made


def draw_main(results: dict[str, Any]) -> Any:
    """Validity of SFT and of each divergence, with intervals, modes hit, and what the divergence itself asks for."""
    import matplotlib.pyplot as plt

    main = results["main"]
    figure, axes = plt.subplots(figsize=(7.4, 4.3), layout="constrained")
    for place, key in enumerate(reversed(CURVE)):
        interval = mean(main[key]["validity"], (0, 1))
        error = [[interval.value - interval.low], [interval.high - interval.value]]
        axes.barh(place, interval.value, color=COLOURS[key], height=0.62, xerr=error, ecolor="black", capsize=4)
        modes = sum(main[key]["modes"]) / len(main[key]["modes"])
        axes.text(1.04, place, f"{interval.value:.2f}   {modes:.1f} of 12", va="center", fontsize=14)
        exact = main.get(f"exact_{key}")
        if exact:
            value = sum(exact["validity"]) / len(exact["validity"])
            axes.plot(value, place, marker="D", color="white", markeredgecolor="black", markersize=9, zorder=5)
    axes.text(1.04, len(CURVE) - 0.42, "valid   modes hit", va="bottom", fontsize=12, color="#444444")
    axes.plot(
        [],
        [],
        marker="D",
        color="white",
        markeredgecolor="black",
        markersize=9,
        linestyle="none",
        label="exact optimum",
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), frameon=False, fontsize=12, handletextpad=0.2)
    axes.set_yticks(range(len(CURVE)), [LABELS[key] for key in reversed(CURVE)])
    axes.set_xlim(0, 1)
    axes.set_xlabel("probability that a sample is one the expert writes")
    return figure


def draw_curves(results: dict[str, Any]) -> Any:
    """Validity over the policy's capacity and over the number of demonstrations; bands from lowest to highest seed."""
    import matplotlib.pyplot as plt

    figure, (upper, lower) = plt.subplots(2, 1, figsize=(6.6, 8.4), layout="constrained", sharey=True)
    _curve(upper, results["capacity"], "tokens that the policy remembers")
    _curve(lower, results["demonstrations"], "demonstrations")
    lower.set_xscale("log")
    lower.set_xticks([int(point) for point in results["demonstrations"]])
    lower.set_xticklabels([f"{int(point):,}" for point in results["demonstrations"]])
    lower.minorticks_off()
    upper.set_xticks([int(point) for point in results["capacity"]])
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _curve(axes: Any, curve: dict[str, Any], label: str) -> None:
    points = [int(point) for point in curve]
    for key in CURVE:
        values = [table[key]["validity"] for table in curve.values()]
        middle = [sum(each) / len(each) for each in values]
        axes.plot(points, middle, color=COLOURS[key], marker="o", linewidth=2.5, label=LABELS[key])
        axes.fill_between(
            points, [min(each) for each in values], [max(each) for each in values], color=COLOURS[key], alpha=0.15
        )
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("valid samples")
    axes.set_xlabel(label)
