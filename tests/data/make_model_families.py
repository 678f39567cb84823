"""Makes families/: for each family of open models a small random model as a Hugging Face folder, and what PyTorch computes with it.

    python3 make_model_families.py [folder]            (Debian 12: python3-torch 1.13.1)

A folder families/NAME holds
    config.json          the fields that the family's published configs have, with small numbers
    model.safetensors    the attention weights of its layers under their Hugging Face names, and each layer's input norm, which
                         attention does not read; one family is split into two files with model.safetensors.index.json
    case.safetensors     x [1,S,E] float32; for each layer N, which gets x itself:
                           layers.N.y [1,S,E] float64            its attention's output under a causal mask
                           layers.N.float32_error []             the largest error of PyTorch's float32 result
                           layers.N.reordered_float32_error []   the worst of nine orders of the same sums: the given one, where this PyTorch
                                                                 adds up each product in four parts, and, one term after another,
                                                                 eight permutations of E
                           layers.N.reordered_float32_rms_error []   of their errors' root mean squares, the largest
                         Where the length of a sequence changes the result: the same four of the first tokens alone, as prefix.N.y, ...

The formulas are written out below, one function for all families; no model library is used. Weights and inputs come from
the generator of make_torch_cases.py, so every run writes the same; in PyTorch's errors, the last bits depend on the processor.
Weights of a BF16 or F16 file are rounded before anything is computed.

Shape letters: S tokens, E hidden size, H query heads, G key/value heads, D head size.
"""
import json
import math
import os
import sys

import numpy as np
import torch

from make_torch_cases import stream_values

S = 13          # tokens; longer than every window
PREFIX = 6      # tokens of a prefix
INF = math.inf


# --------------------------------------------------------------------------------------------------------------------
# 1. Files

DTYPES = {torch.float64: ("F64", np.float64), torch.float32: ("F32", np.float32), torch.float16: ("F16", np.float16),
          torch.bfloat16: ("BF16", np.int16)}


def write_safetensors(path, tensors, metadata=None):
    """Eight bytes of length, the header as JSON padded to a multiple of 8, and the data without gaps, in order of names."""
    header, data = {}, b""
    if metadata:
        header["__metadata__"] = metadata
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        kind, numpy_type = DTYPES[t.dtype]
        raw = (t.view(torch.int16) if t.dtype == torch.bfloat16 else t).numpy().astype(numpy_type).tobytes()
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)


def write_json(path, value):
    with open(path, "w") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


# --------------------------------------------------------------------------------------------------------------------
# 2. Rotary: the angle per position of each pair, and what cosines and sines are multiplied by

def plain_frequencies(theta, dimensions, dtype):
    return theta ** (-torch.arange(0, dimensions, 2, dtype=dtype) / dimensions)


def llama3_frequencies(plain, factor, low, high, original):
    turns = original * plain / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / factor


def yarn_frequencies(plain, theta, factor, original, beta_fast, beta_slow):
    """Without rounding the ends of the ramp: "truncate" is false."""
    dimensions = 2 * len(plain)

    def pair_with(turns):
        return dimensions * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(pair_with(beta_fast), 0), min(pair_with(beta_slow), dimensions - 1)
    ramp = ((torch.arange(len(plain), dtype=plain.dtype) - low) / (high - low)).clamp(0, 1)
    return plain * (1 - ramp) + plain / factor * ramp


def frequencies(rotary, length, dtype):
    plain = plain_frequencies(rotary["theta"], rotary["dimensions"], dtype)
    kind = rotary.get("kind")
    if kind is None:
        return plain, 1.0
    if kind == "linear":
        return plain / rotary["factor"], 1.0
    if kind == "llama3":
        return llama3_frequencies(plain, *rotary["numbers"]), 1.0
    if kind == "yarn":
        return yarn_frequencies(plain, rotary["theta"], *rotary["numbers"]), 0.1 * math.log(rotary["numbers"][0]) + 1
    if kind == "longrope":
        original, factor = rotary["original"], rotary["factor"]
        divisors = rotary["long"] if length > original else rotary["short"]
        return plain / torch.tensor(divisors, dtype=dtype), math.sqrt(1 + math.log(factor) / math.log(original))
    raise ValueError(kind)


def rotate(x, rotary):
    """x [S,heads,D]: pairs (i, i + half) of the first `dimensions` elements."""
    angle, scale = frequencies(rotary, x.shape[0], x.dtype)
    angles = torch.outer(torch.arange(x.shape[0], dtype=x.dtype), angle).unsqueeze(1)
    cosine, sine = angles.cos() * scale, angles.sin() * scale
    half = len(angle)
    first, second, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), -1)


# --------------------------------------------------------------------------------------------------------------------
# 3. Attention

def norm(x, weight, epsilon, plus_one):
    x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)
    return x * (1 + weight) if plus_one else x * weight


def linear(x, weights, name):
    y = x @ weights[name + ".weight"].T
    return y + weights[name + ".bias"] if name + ".bias" in weights else y


def attention(x, w, layer):
    """x [S,E] -> [S,E]: one layer under a causal mask. w: its weights, by the part of their names after self_attn."""
    tokens, H, G, D = x.shape[0], layer["H"], layer["G"], layer["D"]
    if "qkv_proj.weight" in w:
        q, k, v = linear(x, w, "qkv_proj").split((H * D, G * D, G * D), -1)
    else:
        q, k, v = (linear(x, w, name) for name in ("q_proj", "k_proj", "v_proj"))
    if layer.get("norm") == "whole":
        q, k = (norm(t, w[name], layer["epsilon"], False) for t, name in ((q, "q_norm.weight"), (k, "k_norm.weight")))
    q, k, v = (t.view(tokens, -1, D) for t in (q, k, v))
    if layer.get("norm") in ("head", "head_plus_one"):
        plus_one = layer["norm"] == "head_plus_one"
        q, k = (norm(t, w[name], layer["epsilon"], plus_one) for t, name in ((q, "q_norm.weight"), (k, "k_norm.weight")))
    if layer.get("rotary"):
        q, k = rotate(q, layer["rotary"]), rotate(k, layer["rotary"])
    q, k, v = q.transpose(0, 1), *(t.repeat_interleave(H // G, 1).transpose(0, 1) for t in (k, v))
    scores = q @ k.transpose(1, 2) * layer.get("scale", D ** -0.5)
    if "softcap" in layer:
        scores = layer["softcap"] * torch.tanh(scores / layer["softcap"])
    query, key = torch.arange(tokens).unsqueeze(1), torch.arange(tokens)
    dropped = key > query
    if layer.get("window"):
        dropped = dropped | (key <= query - layer["window"])
    scores = scores.masked_fill(dropped, -INF)
    if "sinks" in w:          # one more column, whose value is nothing
        scores = torch.cat((scores, w["sinks"].view(H, 1, 1).expand(H, tokens, 1)), -1)
    weights = scores.softmax(-1)[..., :tokens]
    return linear((weights @ v).transpose(0, 1).reshape(tokens, H * D), w, "o_proj")


# --------------------------------------------------------------------------------------------------------------------
# 4. A family: its config, the names and shapes of a layer's weights, its layers

class Family:
    def __init__(self, name, config, layers, projections, dtype=torch.float32, bias="", extra=None, spread=1.5, shards=False, prefix=False,
                 folder="model."):
        self.name, self.config, self.layers, self.dtype, self.shards, self.prefix = name, config, layers, dtype, shards, prefix
        self.seed = 7000 + sum(ord(letter) * (i + 1) for i, letter in enumerate(name))
        self.stream, self.folder = 0, folder
        E = config["hidden_size"]
        self.x = self.numbers((S, E), math.sqrt(3.0)).float()
        self.weights = []
        for layer in layers:
            H, G, D = layer["H"], layer["G"], layer["D"]
            rows = {"q_proj": H * D, "k_proj": G * D, "v_proj": G * D, "qkv_proj": (H + 2 * G) * D}
            w = {}
            for projection in projections:
                if projection == "o_proj":
                    w["o_proj.weight"] = self.numbers((E, H * D), math.sqrt(3.0 / (H * D)))
                else:
                    w[projection + ".weight"] = self.numbers((rows[projection], E), math.sqrt(3.0 * spread / E))
                if projection[0] in bias:
                    w[projection + ".bias"] = self.numbers((E if projection == "o_proj" else rows[projection],), 1.0)
            for tensor, shape, low, high in (extra(layer) if extra else ()):
                w[tensor] = self.numbers(shape, (high - low) / 2) + (high + low) / 2
            self.weights.append({n: t.to(dtype) for n, t in w.items()})

    def numbers(self, shape, scale):
        """Uniform in [-scale, scale)."""
        self.stream += 1
        return torch.from_numpy(stream_values(self.seed, self.stream, int(np.prod(shape))) * scale).reshape(shape)

    def case(self):
        result = {"x": self.x.unsqueeze(0)}
        for n, (layer, weights) in enumerate(zip(self.layers, self.weights)):
            for what, tokens in (("layers", S), ("prefix", PREFIX)):
                if what == "layers" or self.prefix:
                    result.update({f"{what}.{n}.{key}": t for key, t in self.results(layer, weights, self.x[:tokens]).items()})
        return result

    @staticmethod
    def results(layer, weights, x):
        exact = attention(x.double(), {n: t.double() for n, t in weights.items()}, layer)
        single = {n: t.float() for n, t in weights.items()}
        differences = [attention(x, single, layer).double() - exact]
        generator = torch.Generator().manual_seed(1)
        for _ in range(8):          # the inputs of q, k and v in another order; weights whose columns are contiguous
            order = torch.randperm(x.shape[1], generator=generator)
            other = {n: t[:, order] if n in INPUTS else t for n, t in single.items()}
            other = {n: t.T.contiguous().T if t.dim() == 2 else t for n, t in other.items()}
            differences.append(attention(x[:, order], other, layer).double() - exact)
        largest = [d.abs().max() for d in differences]
        assert largest[0] > 0, "an error of 0 is no bar"
        return {"y": exact.unsqueeze(0), "float32_error": largest[0], "reordered_float32_error": max(largest),
                "reordered_float32_rms_error": max((d * d).mean().sqrt() for d in differences)}

    def write(self, root):
        folder = os.path.join(root, self.name)
        os.makedirs(folder, exist_ok=True)
        write_json(os.path.join(folder, "config.json"), self.config)
        tensors = {}
        for n, weights in enumerate(self.weights):
            prefix = f"{self.folder}layers.{n}."
            tensors.update({prefix + "self_attn." + name: t for name, t in weights.items()})
            tensors[prefix + "input_layernorm.weight"] = torch.ones(self.config["hidden_size"], dtype=self.dtype)
        if self.shards:
            self.write_shards(folder, tensors)
        else:
            write_safetensors(os.path.join(folder, "model.safetensors"), tensors, {"format": "pt"})
        write_safetensors(os.path.join(folder, "case.safetensors"), self.case())

    @staticmethod
    def write_shards(folder, tensors):
        """Every other tensor in the other file, so that no layer lies in one alone."""
        files = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
        names = sorted(tensors)
        for i, file in enumerate(files):
            write_safetensors(os.path.join(folder, file), {n: tensors[n] for n in names[i::2]}, {"format": "pt"})
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        write_json(os.path.join(folder, "model.safetensors.index.json"),
                   {"metadata": {"total_size": size}, "weight_map": {n: files[i % 2] for i, n in enumerate(names)}})


INPUTS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "qkv_proj.weight")
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")


def config_of(model_type, architecture, E, H, G, layers, **others):
    """What all published configs have, and what this family adds."""
    return {"architectures": [architecture], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
            "hidden_size": E, "initializer_range": 0.02, "intermediate_size": 2 * E, "max_position_embeddings": 64, "model_type": model_type,
            "num_attention_heads": H, "num_hidden_layers": layers, "num_key_value_heads": G, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
            "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.55.0", "use_cache": True, "vocab_size": 64,
            **others}


def head_norms(low, high):
    return lambda layer: (("q_norm.weight", (layer["D"],), low, high), ("k_norm.weight", (layer["D"],), low, high))


def llama():
    E, H, G, D = 40, 4, 2, 10
    rotary = {"theta": 100.0, "dimensions": D, "kind": "llama3", "numbers": (8.0, 1.0, 4.0, 48)}
    scaling = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 48, "rope_type": "llama3"}
    config = config_of("llama", "LlamaForCausalLM", E, H, G, 2, attention_bias=False, mlp_bias=False, pretraining_tp=1, rope_scaling=scaling,
                       rope_theta=100.0, max_position_embeddings=384)
    return Family("llama", config, [dict(H=H, G=G, D=D, rotary=rotary)] * 2, QKVO)


def mistral():
    E, H, G, D, window = 36, 6, 3, 14, 5
    layer = dict(H=H, G=G, D=D, rotary={"theta": 10000.0, "dimensions": D}, window=window)
    config = config_of("mistral", "MistralForCausalLM", E, H, G, 2, head_dim=D, sliding_window=window)
    return Family("mistral", config, [layer] * 2, QKVO)


def qwen2():
    E, H, G, D, window = 42, 7, 1, 6, 4
    layer = dict(H=H, G=G, D=D, rotary={"theta": 1000000.0, "dimensions": D})
    config = config_of("qwen2", "Qwen2ForCausalLM", E, H, G, 2, rope_theta=1000000.0, sliding_window=window, use_sliding_window=True,
                       max_window_layers=1, rms_norm_eps=1e-06)
    return Family("qwen2", config, [layer, dict(layer, window=window)], QKVO, bias="qkv")


def qwen3():
    E, H, G, D, epsilon = 32, 4, 2, 12, 0.02
    layer = dict(H=H, G=G, D=D, rotary={"theta": 1000000.0, "dimensions": D}, norm="head", epsilon=epsilon)
    config = config_of("qwen3", "Qwen3ForCausalLM", E, H, G, 2, attention_bias=False, head_dim=D, max_window_layers=2, rms_norm_eps=epsilon,
                       rope_scaling=None, rope_theta=1000000, sliding_window=None, use_sliding_window=False)
    return Family("qwen3", config, [layer] * 2, QKVO, extra=head_norms(0.5, 2.5), shards=True)


def gemma2():
    E, H, G, D, window, scalar = 36, 4, 2, 8, 4, 9
    layer = dict(H=H, G=G, D=D, rotary={"theta": 10000.0, "dimensions": D}, scale=scalar ** -0.5, softcap=50.0)
    config = config_of("gemma2", "Gemma2ForCausalLM", E, H, G, 2, attention_bias=False, attn_logit_softcapping=50.0, cache_implementation="hybrid",
                       final_logit_softcapping=30.0, head_dim=D, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
                       pad_token_id=0, query_pre_attn_scalar=scalar, rms_norm_eps=1e-06, sliding_window=window)
    return Family("gemma2", config, [dict(layer, window=window), layer], QKVO, spread=18.0)


def gemma3():
    E, H, G, D, window, scalar, epsilon = 20, 2, 1, 24, 5, 20, 0.02
    layer = dict(H=H, G=G, D=D, scale=scalar ** -0.5, norm="head_plus_one", epsilon=epsilon)
    local = dict(layer, window=window, rotary={"theta": 10000.0, "dimensions": D})
    whole = dict(layer, rotary={"theta": 1000000.0, "dimensions": D, "kind": "linear", "factor": 8.0})
    config = config_of("gemma3_text", "Gemma3ForCausalLM", E, H, G, 6, attention_bias=False, attn_logit_softcapping=None,
                       cache_implementation="hybrid", eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=D,
                       hidden_activation="gelu_pytorch_tanh", pad_token_id=0, query_pre_attn_scalar=scalar, rms_norm_eps=epsilon,
                       rope_local_base_freq=10000, rope_scaling={"factor": 8.0, "rope_type": "linear"}, rope_theta=1000000,
                       sliding_window=window, sliding_window_pattern=6, torch_dtype="bfloat16")
    del config["hidden_act"], config["tie_word_embeddings"]
    return Family("gemma3", config, [local] * 5 + [whole], QKVO, dtype=torch.bfloat16, extra=head_norms(-0.5, 1.5))


def phi3():
    E, H, G, D, window, dimensions, original = 48, 4, 2, 12, 6, 6, 8
    short, long = [1.0, 1.25, 1.5], [1.1, 2.5, 4.0]
    rotary = {"theta": 10000.0, "dimensions": dimensions, "kind": "longrope", "original": original, "factor": 4.0, "short": short, "long": long}
    config = config_of("phi3", "Phi3ForCausalLM", E, H, G, 2, attention_bias=False, embd_pdrop=0.0, full_attn_mod=1, interpolate_factor=1,
                       lm_head_bias=False, max_position_embeddings=32, mlp_bias=False, original_max_position_embeddings=original,
                       pad_token_id=0, partial_rotary_factor=0.5, resid_pdrop=0.0, sliding_window=window,
                       rope_scaling={"long_factor": long, "short_factor": short, "type": "longrope"})
    return Family("phi3", config, [dict(H=H, G=G, D=D, rotary=rotary, window=window)] * 2, ("qkv_proj", "o_proj"), prefix=True)


def gpt_oss():
    E, H, G, D, window = 24, 6, 2, 14, 4
    rotary = {"theta": 150000.0, "dimensions": D, "kind": "yarn", "numbers": (32.0, 64, 32.0, 1.0)}
    layer = dict(H=H, G=G, D=D, rotary=rotary)
    config = config_of("gpt_oss", "GptOssForCausalLM", E, H, G, 2, attention_bias=True, experts_per_token=4, head_dim=D, initial_context_length=64,
                       layer_types=["sliding_attention", "full_attention"], max_position_embeddings=2048, num_experts_per_tok=4,
                       num_local_experts=32, output_router_logits=False, pad_token_id=0, router_aux_loss_coef=0.9, rope_theta=150000,
                       rope_scaling={"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 64,
                                     "rope_type": "yarn", "truncate": False}, sliding_window=window, swiglu_limit=7.0)
    return Family("gpt_oss", config, [dict(layer, window=window), layer], QKVO, bias="qkvo",
                  extra=lambda layer: (("sinks", (layer["H"],), -1.0, 3.0),))


def smollm3():
    E, H, G, D = 32, 4, 1, 8
    layer = dict(H=H, G=G, D=D)
    config = config_of("smollm3", "SmolLM3ForCausalLM", E, H, G, 2, attention_bias=False, layer_types=["full_attention"] * 2, max_window_layers=28,
                       mlp_bias=False, no_rope_layer_interval=2, no_rope_layers=[1, 0], pad_token_id=0, pretraining_tp=2, rope_scaling=None,
                       rope_theta=5000000.0, sliding_window=None, use_sliding_window=False, rms_norm_eps=1e-06)
    return Family("smollm3", config, [dict(layer, rotary={"theta": 5000000.0, "dimensions": D}), layer], QKVO)


def granite():
    E, H, G, D, multiplier = 30, 3, 1, 10, 0.171875
    layer = dict(H=H, G=G, D=D, rotary={"theta": 10000.0, "dimensions": D}, scale=multiplier)
    config = config_of("granite", "GraniteForCausalLM", E, H, G, 2, attention_bias=False, attention_dropout=0.1, attention_multiplier=multiplier,
                       embedding_multiplier=12.0, logits_scaling=8.0, mlp_bias=False, pad_token_id=0, residual_multiplier=0.22,
                       rope_scaling=None, tie_word_embeddings=True, torch_dtype="float16")
    return Family("granite", config, [layer] * 2, QKVO, dtype=torch.float16)


def olmo2():
    E, H, G, D, epsilon = 36, 3, 1, 12, 0.02
    layer = dict(H=H, G=G, D=D, rotary={"theta": 500000.0, "dimensions": D}, norm="whole", epsilon=epsilon)
    config = config_of("olmo2", "Olmo2ForCausalLM", E, H, G, 2, attention_bias=False, pad_token_id=0, rms_norm_eps=epsilon, rope_scaling=None,
                       rope_theta=500000)
    return Family("olmo2", config, [layer] * 2, QKVO,
                  extra=lambda layer: (("q_norm.weight", (H * D,), 0.5, 2.5), ("k_norm.weight", (G * D,), 0.5, 2.5)))


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "families")
    for make in (llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, gpt_oss, smollm3, granite, olmo2):
        make().write(root)


if __name__ == "__main__":
    main()
