"""Prints PyTorch's figures for the case that examples/attention_map.cpp checks itself against, as C++ tables.

    python3 make_attention_map_case.py            (Debian 12: python3-torch 1.13.1)

One causal forward pass of LlamaAttention in evaluation mode, B=1, S=6, E=16, H=4. Input and weights are those
of seed 2026 of the generator in README.md; the example makes the same numbers. Printed: the float64 output [S,E], the
attention weights of the last query [H,S], and how far PyTorch's own float32 falls from them. Paste the lines into the example.
"""
import torch

from make_torch_cases import INF, LlamaAttention, STREAMS, stream_values

SEED, S, E, H = 2026, 6, 16, 4
SCALES = {"wq": 1.0, "bq": 0.5, "wk": 1.0, "bk": 0.5, "wv": 0.5, "bv": 0.25, "wo": 0.5, "bo": 0.25}


def stream(name, dims, scale):
    count = torch.Size(dims).numel()
    return torch.from_numpy(stream_values(SEED, STREAMS[name], count) * scale).reshape(dims)


def forward(dtype):
    kept = {}
    module = LlamaAttention(E, H).to(dtype).eval()
    module.attn_dropout.register_forward_hook(lambda _, inputs, output: kept.update(weights=output[0, :, -1]))
    with torch.no_grad():
        for linear, letter in ((module.query, "q"), (module.key, "k"), (module.value, "v"), (module.out_proj, "o")):
            linear.weight.copy_(stream("w" + letter, (E, E), SCALES["w" + letter]))
            linear.bias.copy_(stream("b" + letter, (E,), SCALES["b" + letter]))
        causal = torch.full((S, S), -INF, dtype=dtype).triu(1)
        output = module(stream("x", (1, S, E), 1.0).to(dtype), causal)[0]
    return {"output": output, "weights": kept["weights"]}


def main():
    exact, single = forward(torch.float64), forward(torch.float32)
    for name, values in exact.items():
        numbers = [f"{v:.9g}" for v in values.flatten().tolist()]
        print(f"constexpr double torch_{name}[] = {{")
        for i in range(0, len(numbers), 8):
            print("    " + ", ".join(numbers[i:i + 8]) + ",")
        print("};")
    for name in exact:
        print(f"constexpr double torch_float32_error_{name} = {(single[name].double() - exact[name]).abs().max():.1e};")


if __name__ == "__main__":
    main()
