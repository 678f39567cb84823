#!/usr/bin/env python3
"""Compares attn with its rivals on this machine and keeps the result as bench/results/<CPU model>.json.

    bench/record.py [--build DIR] [--pairs N] [--threads N] [--only TEXT]

Needs the preset "release" built and onnxruntime-node (see bench/README.md). Let the machine be idle: it takes some five
minutes on two cores. With --only, the works whose name contains TEXT are measured again and replace those in the file.
"""
import argparse
import datetime
import json
import pathlib
import re
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def cpu_model():
    """What /proc/cpuinfo calls the CPU; family and model number beside it, since virtual machines shorten the name."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    field = lambda name: (re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE) or [None, "unknown"])[1].strip()
    return field("model name"), f"family {field('cpu family')} model {field('model')}"


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent).stdout.strip()


def compare(arguments, json_path):
    command = ["node", HERE / "peers" / "compare.js", "--json", json_path, "--pairs", str(arguments.pairs),
               "--attn", arguments.build / "bench" / "peers" / "attn_peer"]
    for name in ("threads", "only"):
        if getattr(arguments, name):
            command += [f"--{name}", str(getattr(arguments, name))]
    subprocess.run(command, check=True)
    return json.loads(pathlib.Path(json_path).read_text())


def summary(result):
    """One work: its ratio with the spread, and the share of the machine's peak."""
    digits = lambda x: round(x, 3)
    return {"work": result["work"], "rival": result["rival"], "pairs": result["pairs"], "ratio": digits(result["ratio"]),
            "ratio_min": digits(result["ratio_min"]), "ratio_max": digits(result["ratio_max"]),
            "share_of_peak": digits(result["share_of_peak"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=HERE.parent / "build" / "release")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        measured = compare(arguments, str(pathlib.Path(folder) / "results.json"))
    name, number = cpu_model()
    file = HERE / "results" / (re.sub(r"[^a-z0-9]+", "-", f"{name} {number}".lower()).strip("-") + ".json")
    works = [summary(result) for result in measured["results"]]
    if arguments.only and file.exists():
        again = {work["work"]: work for work in works}
        works = [again.pop(old["work"], old) for old in json.loads(file.read_text())["results"]] + list(again.values())
    label = json.loads(file.read_text()).get("label", name) if file.exists() else name  # may be edited by hand
    record = {"cpu": name, "label": label, "number": number, "isa": measured["machine"]["isa"], "threads": measured["machine"]["threads"],
              "peak_gflops": round(measured["machine"]["peak_gflops"]), "compiler": f"c++ {output_of('c++', '-dumpfullversion')}",
              "date": datetime.date.today().isoformat(), "revision": output_of("git", "rev-parse", "--short", "HEAD"),
              "results": works}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {file.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
