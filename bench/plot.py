#!/usr/bin/env python3
"""Draws GFLOP/s against sequence length from what `peers/compare.js sweep --json F` wrote. Needs python3-matplotlib.

    plot.py F [F ...] [-o docs/speed.svg]

Several files add rivals; attn's lines and the peak come from the first.
"""
import argparse
import json
import pathlib
import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "attn", "font.size": 10,
                            "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402

OURS, RIVALS = "#0b5fa5", ["#c2571a", "#5b8c3a", "#7a5195"]


def read(path):
    data = json.loads(pathlib.Path(path).read_text())
    works = [r for r in data["results"] if r["work"].startswith("attention") and r["shape"]["B"] == 1]
    if not works:
        raise SystemExit(f"{path}: no attention of batch 1 in it; it should come from `compare.js sweep --json`")
    return data["machine"], works


def lines(works, heads, size, key):
    """Full and causal attention: lengths and GFLOP/s."""
    for causal, style in ((False, "-"), (True, "--")):
        points = sorted((r["shape"]["S"], r["operations"] / statistics.median(r[key]) * 1e-6) for r in works
                        if (r["shape"]["H"], r["shape"]["E"]) == (heads, heads * size) and ("causal" in r["work"]) == causal)
        if points:
            yield ("causal" if causal else "full"), style, *zip(*points)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("-o", "--output", default=pathlib.Path(__file__).parent.parent / "docs" / "speed.svg")
    arguments = parser.parse_args()
    runs = [read(path) for path in arguments.files]
    machine, works = runs[0]
    peak = machine["peak_gflops"]

    panels = sorted({(r["shape"]["H"], r["shape"]["E"] // r["shape"]["H"]) for r in works})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.9), sharey=True, squeeze=False)
    for ax, (heads, size) in zip(axes[0], panels):
        ax.axhline(peak, color="#444444", linewidth=1, linestyle=":",
                   label="peak: multiply-adds in registers")
        for i, (_, rival_works) in enumerate(runs):
            for mask, style, lengths, rates in lines(rival_works, heads, size, "rival_ms"):
                ax.plot(lengths, rates, style, color=RIVALS[i % len(RIVALS)], marker="o", markersize=3.5, linewidth=1.4,
                        label=f"{rival_works[0]['rival']}, {mask}")
        for mask, style, lengths, rates in lines(works, heads, size, "attn_ms"):
            ax.plot(lengths, rates, style, color=OURS, marker="o", markersize=4, linewidth=2, label=f"attn, {mask}")
        ax.set_xscale("log", base=2)
        ticks = sorted({r["shape"]["S"] for r in works})
        ax.set_xticks(ticks, [str(s) for s in ticks])
        ax.minorticks_off()
        ax.set_ylim(0, peak * 1.08)
        ax.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.set_title(f"{heads} heads of {size}", fontsize=11, loc="left")
        ax.set_xlabel("sequence length")
    axes[0][0].set_ylabel("GFLOP/s")
    handles, labels = axes[0][0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: (labels[i].startswith("peak"), not labels[i].startswith("attn")))
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="lower center", ncol=3, frameon=False,
                  fontsize=9, handlelength=3.2)
    figure.suptitle(f"Attention, float32, {machine['threads']} threads, {machine['isa']}; causal counts as half the work",
                    fontsize=11, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(arguments.output, facecolor="white", metadata={"Date": None, "Creator": None})
    print(arguments.output)


if __name__ == "__main__":
    main()
