#!/usr/bin/python3
"""Forward and backward of the whole layer: attn against PyTorch, in turns. Both must agree before they are timed.

    torch_training.py [path of attn_peer] [--pairs 9] [--threads 2] [--json FILE]

Debian 12: python3-torch (1.13) and libopenblas-dev, whose products it then uses. A ratio is PyTorch's time by attn's.
"""
import argparse
import json
import os
import statistics
import subprocess
import time

parser = argparse.ArgumentParser()
parser.add_argument("peer", nargs="?", default="build/release/bench/peers/attn_peer")
parser.add_argument("--pairs", type=int, default=9)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--json")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["ATTN_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402: after the numbers of threads
import torch  # noqa: E402

torch.set_num_threads(options.threads)
SHAPES = ((8, 128, 256, 8), (1, 1024, 768, 12), (1, 2048, 1024, 8), (1, 512, 4096, 32), (1, 2048, 4096, 32))


def fill(shape, seed, bound=1.0):
    """The numbers of fill in bench/support.hpp."""
    h = (np.arange(int(np.prod(shape)), dtype=np.uint32) + np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)) * np.uint32(0x9E3779B1)
    h = (h ^ (h >> np.uint32(15))) * np.uint32(0x85EBCA77)
    h = h ^ (h >> np.uint32(13))
    return torch.from_numpy((h.view(np.int32) * (bound * 2.0 ** -31)).astype(np.float32).reshape(shape))


class Layer(torch.nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.projections = torch.nn.ModuleList(torch.nn.Linear(hidden, hidden) for _ in range(4))
        bound, seed = hidden ** -0.5, 10
        with torch.no_grad():
            for linear in self.projections:
                linear.weight.copy_(fill((hidden, hidden), seed, bound))
                linear.bias.copy_(fill((hidden,), seed + 1, bound))
                seed += 2

    def forward(self, x):
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in self.projections[:3])
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, -1)
        return self.projections[3]((weights @ v).transpose(1, 2).flatten(2))


class Peer:
    def __init__(self, path):
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer and not answer.startswith("error"), answer
        return [float(word) for word in answer.split()[-32:]]


def products_per_second():
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    a @ b
    start = time.perf_counter()
    a @ b
    return 2 * 2048 ** 3 / (time.perf_counter() - start)


peer = Peer(options.peer)
print(f"PyTorch {torch.__version__}, {options.threads} threads; its product of 2048 x 2048: {products_per_second() * 1e-9:.0f} GFLOP/s, "
      f"a burst of multiply-adds: {peer.ask('peak')[0]:.0f}")
rows = []
for B, S, E, H in SHAPES:
    layer, x, grad = Layer(E, H), fill((B, S, E), 1).requires_grad_(), fill((B, S, E), 2)

    def step():
        layer(x).backward(grad)

    ours = peer.ask(f"training {B} {S} {E} {H}")
    step()
    found = x.grad.flatten()
    theirs = [found[i * (found.numel() - 1) // 31].item() for i in range(32)]
    size = max(abs(value) for value in theirs)
    assert all(abs(a - b) <= 1e-4 * size for a, b in zip(ours, theirs)), (B, S, E, H)
    runs = max(1, int(150 / peer.ask("run 1")[0]))
    ratios, times = [], []
    for _ in range(options.pairs):
        start = time.perf_counter()
        for _ in range(max(1, runs // 5)):
            step()
        rival = (time.perf_counter() - start) / max(1, runs // 5) * 1e3
        times.append(peer.ask(f"run {runs}")[0])
        ratios.append(rival / times[-1])
    rows.append({"work": f"training {B},{S},{E},{H}", "median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)})
    print(f"{B},{S},{E},{H}: {statistics.median(times):.2f} ms, PyTorch {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] times as long", flush=True)
if options.json:
    with open(options.json, "w") as file:
        json.dump(rows, file, indent=1)
