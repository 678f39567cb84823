#!/usr/bin/env python3
"""Makes the README's table of ratios from bench/results/*.json.

    bench/table.py            prints it
    bench/table.py --write    puts it into README.md, between its markers
    bench/table.py --check    fails where README.md has another one
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- speed table -->\n", "<!-- end of speed table -->"

# What a row says, and the works in its columns. Sizes are B, S, heads x head size.
ROWS = [
    ("1, 2048, 32 x 128", "attention full 1 2048 32 128", "attention causal 1 2048 32 128", "layer 1 2048 4096 32"),
    ("1, 1024, 12 x 64", "attention full 1 1024 12 64", "attention causal 1 1024 12 64", "layer 1 1024 768 12"),
    ("8, 128, 8 x 32", "attention full 8 128 8 32", "attention causal 8 128 8 32", "layer 8 128 256 8"),
    ("1, 512 after 3584, 32 on 8 x 128", None, "gqa 1 512 32 8 128 3584", None),
    ("1, 1 after 4095, 32 on 8 x 128", None, "gqa 1 1 32 8 128 4095", None),
]
COLUMNS = ["attention", "causal", "whole layer"]


def table(records):
    names = [record["label"] if "label" in record else record["cpu"] for record in records]
    header = ["B, S, heads x head size"] + [f"{name}: {column}" if column == COLUMNS[0] else column
                                            for name in names for column in COLUMNS]
    lines = [header, ["---"] * len(header)]
    for title, *works in ROWS:
        cells = []
        for record in records:
            ratios = {result["work"]: result["ratio"] for result in record["results"]}
            cells += [f"{ratios[work]:.2f}" if work in ratios else "" for work in works]
        if any(cells):
            lines.append([title] + cells)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(arguments):
    records = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    made = table(records)
    if not arguments:
        print(made, end="")
        return 0
    text = README.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    if arguments == ["--check"]:
        if old == made:
            return 0
        print("README.md has another table than bench/results says: run bench/table.py --write", file=sys.stderr)
        return 1
    if arguments == ["--write"]:
        README.write_text(before + BEGIN + made + END + after)
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
