"""Makes torch_cases.bin and torch_cases.txt: PyTorch's float64 results, and PyTorch's own float32 error, for the tests of attn.

    python3 make_torch_cases.py            (Debian 12: python3-torch 1.13.1)

Inputs and weights are not stored: they come from a counter-based generator that torch_cases.hpp has too. README.md describes
the two files and the generator; the formulas are below, one function for each kind of case.

Shape letters: B batch, S query length, T key length, E hidden size, H query heads, G key/value heads, D head size, Dv value head size.
"""
import math
import os
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_num_threads(1)
INF = math.inf

# --------------------------------------------------------------------------------------------------------------------
# 1. The generator. torch_cases.hpp computes the same bits.

STREAMS = {"x": 1, "wq": 2, "bq": 3, "wk": 4, "bk": 5, "wv": 6, "bv": 7, "wo": 8, "bo": 9,
           "mask": 10, "drop": 11, "q": 12, "k": 13, "v": 14, "w": 15, "b": 16}


def stream_values(seed, stream, count):
    """Element i is hash(seed, stream, i) in [-1, 1), a multiple of 2^-23: exact in float32."""
    key = np.uint64((seed * 256 + stream) << 32) | np.arange(count, dtype=np.uint64)
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(40)).astype(np.float64) * 2.0 ** -23 - 1.0


# A rule says where an additive mask holds the fill value. Dims are aligned to the right of [b, h, s, t], as in broadcasting;
# an axis of size 1, or one that is not there, counts as index 0. Elsewhere the mask is 0, or a random value if RANDOM has the rule.
RANDOM = ("random", "causal_random", "random_drop")


def rule_values(rule, dims, seed, fill, scale, lengths):
    count = int(np.prod(dims))
    full = (1,) * (4 - len(dims)) + tuple(dims)
    b, h, s, t = (axis.reshape(-1) for axis in np.indices(full))
    if rule == "random":
        dropped = np.zeros(count, bool)
    elif rule in ("causal", "causal_random"):
        dropped = t > s
    elif rule == "padding":            # keys from lengths[b] on
        dropped = t >= np.array(lengths)[b]
    elif rule == "key_padding":        # the same for dims [B, T], whose first axis is the batch
        dropped = t >= np.array(lengths)[s]
    elif rule == "rows":               # every third query: the whole row
        dropped = s % 3 == 0
    elif rule == "all":
        dropped = np.ones(count, bool)
    elif rule in ("drop", "random_drop"):   # about a quarter, never the key of the query's own index
        dropped = (stream_values(seed, STREAMS["drop"], count) < -0.5) & (t != s)
    else:
        raise ValueError(rule)
    base = stream_values(seed, STREAMS["mask"], count) * scale if rule in RANDOM else np.zeros(count)
    return np.where(dropped, fill, base).reshape(dims)


# --------------------------------------------------------------------------------------------------------------------
# 2. The two files

def text(value):
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, (list, tuple)):
        return ",".join(text(v) for v in value)
    if isinstance(value, float) and value == int(value if math.isfinite(value) else 0) and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else repr(value)


def dims_text(dims):
    return "x".join(str(d) for d in dims)


class Case:
    """One line of the manifest: parameters, tensors that are generated, tensors that are stored."""
    all = []
    binary = bytearray()

    def __init__(self, kind, name, **params):
        assert all(c.kind != kind or c.name != name for c in Case.all), name
        self.kind, self.name, self.tensors = kind, name, []
        self.params = {"seed": len(Case.all) + 1, **params}
        Case.all.append(self)

    def stream(self, name, dims, scale=1.0):
        number = STREAMS[name]
        assert math.log2(scale).is_integer()
        self.tensors.append(f"{name} stream {dims_text(dims)} {number} {text(float(scale))}")
        values = stream_values(self.params["seed"], number, int(np.prod(dims))) * scale
        return torch.from_numpy(values.reshape(dims))

    def mask(self, rule, dims, fill=-INF, scale=1.0, name="mask"):
        self.tensors.append(f"{name} rule {dims_text(dims)} {rule} {text(float(fill))} {text(float(scale))}")
        return torch.from_numpy(rule_values(rule, dims, self.params["seed"], fill, scale, self.params.get("lengths")))

    def flags(self, rule, dims, name):
        """A boolean tensor in PyTorch's sense: true (1) where the rule drops, that is, do not attend."""
        self.tensors.append(f"{name} flags {dims_text(dims)} {rule}")
        return torch.from_numpy(rule_values(rule, dims, self.params["seed"], 1.0, 1.0, self.params.get("lengths")) == 1.0)

    def store(self, name, tensor):
        values = tensor.detach().contiguous().numpy()
        kind = {"float64": "f64", "float32": "f32"}[values.dtype.name]
        assert not np.isnan(values).any(), (self.name, name)
        Case.binary += b"\0" * (-len(Case.binary) % 8)
        self.tensors.append(f"{name} {kind} {dims_text(values.shape)} {len(Case.binary)}")
        Case.binary += values.astype("<f8" if kind == "f64" else "<f4").tobytes()

    def results(self, function, *inputs, reorder=None, **more):
        """Stores function(inputs) in float64, one tensor for each key, and the error of the same function in float32.

        reorder(inputs, generator) gives inputs of the same meaning whose sums run in another order: how much of the error is luck.
        """
        exact = function(*inputs, **more)
        single = function(*(to_float32(i) for i in inputs), **more)
        for name, value in exact.items():
            assert value.dtype == torch.float64 and single[name].dtype == torch.float32
            self.store(name, value)
            finite = torch.isfinite(value)
            assert torch.equal(finite, torch.isfinite(single[name]))
            error = (single[name].double() - value)[finite]
            suffix = "" if name == "output" else "_" + name
            self.params["torch_max_error" + suffix] = error.abs().max().item()
            self.params["torch_rms_error" + suffix] = error.square().mean().sqrt().item()
        if reorder:
            generator = torch.Generator().manual_seed(self.params["seed"])
            largest, rms = self.params["torch_max_error"], self.params["torch_rms_error"]
            for _ in range(8):
                other = function(*(to_float32(i) for i in reorder(inputs, generator)), **more)["output"]
                error = other.double() - exact["output"]
                largest, rms = max(largest, error.abs().max().item()), max(rms, error.square().mean().sqrt().item())
            self.params["torch_reordered_max_error"], self.params["torch_reordered_rms_error"] = largest, rms
        return exact, single

    def line(self):
        params = " ".join(f"{key}={text(value)}" for key, value in self.params.items())
        return " | ".join([f"{self.kind} {self.name} {params}"] + self.tensors)


def to_float32(value):
    if isinstance(value, dict):
        return {key: to_float32(v) for key, v in value.items()}
    return value.float() if torch.is_tensor(value) and value.dtype == torch.float64 else value


def fnv1a64(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


# --------------------------------------------------------------------------------------------------------------------
# 3. module: LlamaAttention, in evaluation mode

class LlamaAttention(nn.Module):
    def __init__(self, hidden, heads, dropout=0.1):
        super().__init__()
        assert hidden % heads == 0
        self.heads = heads
        self.query, self.key, self.value, self.out_proj = (nn.Linear(hidden, hidden) for _ in range(4))
        self.attn_dropout, self.proj_dropout = nn.Dropout(dropout), nn.Dropout(dropout)

    def split(self, t):                                                   # [B,S,E] -> [B,H,S,D]
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x, mask=None):
        q, k, v = (self.split(linear(x)) for linear in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5               # [B,H,S,S]
        if mask is not None:
            scores = scores + mask
        weights = self.attn_dropout(F.softmax(scores, -1))
        return self.proj_dropout(self.out_proj((weights @ v).transpose(1, 2).flatten(2)))


def projection_streams(case, hidden):
    """Weights near 1/sqrt(E); those of q and k larger, so that scores spread (standard deviation about 1.8 when x has scale 1)."""
    unit = 2.0 ** -round(math.log2(hidden) / 2)
    out = {}
    for letter, weight, bias in (("q", 4, 0.5), ("k", 4, 0.5), ("v", 2, 0.25), ("o", 2, 0.25)):
        out["w" + letter] = case.stream("w" + letter, (hidden, hidden), weight * unit)
        out["b" + letter] = case.stream("b" + letter, (hidden,), bias)
    return out


def reorder_projections(inputs, generator):
    """Permutes the hidden axis before the projections, and the D axis of each head between them and out_proj."""
    x, p, heads, *rest = inputs
    hidden = x.shape[-1]
    before = torch.randperm(hidden, generator=generator)
    within = [torch.randperm(hidden // heads, generator=generator) + head * (hidden // heads) for head in range(heads)]
    between = torch.cat(within)
    p = {name: t[:, between] if name == "wo" else t if name == "bo" else t[between][:, before] if name[0] == "w" else t[between] for name, t in p.items()}
    return x[..., before].contiguous(), p, heads, *rest


def run_llama_attention(x, p, heads, mask):
    module = LlamaAttention(x.shape[-1], heads).eval().to(x.dtype)
    with torch.no_grad():
        for linear, letter in ((module.query, "q"), (module.key, "k"), (module.value, "v"), (module.out_proj, "o")):
            linear.weight.copy_(p["w" + letter])
            linear.bias.copy_(p["b" + letter])
        return {"output": module(x, mask)}


def module_case(B, S, E, H, rule="none", dims=None, fill=-INF, mask_scale=1.0, x_scale=1.0, lengths=None, tag=""):
    rank = f"_{dims_text(dims)}" if dims else ""
    filler = "_filler" if fill != -INF else ""
    case = Case("module", f"{rule}{filler}{rank}{tag}_b{B}_s{S}_e{E}_h{H}", B=B, S=S, E=E, H=H, mask=rule)
    if dims:
        case.params["mask_rank"] = len(dims)
    if lengths:
        case.params["lengths"] = lengths
    x = case.stream("x", (B, S, E), x_scale)
    p = projection_streams(case, E)
    mask = case.mask(rule, dims, fill, mask_scale) if dims else None
    _, single = case.results(run_llama_attention, x, p, H, mask, reorder=reorder_projections)
    if fill != -INF:                      # float32 swallows the score beside -1e9: keep what float32 gives, too
        case.store("output_float32", single["output"])


def module_cases():
    # sizes
    for B, S, E, H in ((2, 7, 48, 6), (64, 1, 1, 1), (16, 5, 1, 1), (5, 1, 64, 8), (2, 8, 32, 1), (2, 9, 12, 12), (3, 5, 30, 5), (4, 2, 14, 7),
                       (1, 33, 64, 4), (1, 65, 96, 4), (1, 128, 32, 4), (1, 130, 40, 4), (1, 16, 256, 8), (1, 19, 256, 2),
                       (1, 17, 160, 1), (1, 12, 192, 3), (2, 31, 24, 8), (1, 64, 64, 1)):
        module_case(B, S, E, H)
    # magnitudes
    for B, S, E, H, x_scale in ((2, 7, 48, 6, 8.0), (1, 33, 64, 4, 8.0), (1, 65, 32, 2, 8.0), (2, 9, 40, 5, 64.0), (2, 9, 40, 5, 2.0 ** -10)):
        module_case(B, S, E, H, x_scale=x_scale, tag="_x" + ("small" if x_scale < 1 else text(x_scale)))
    # random finite masks, every rank and broadcast
    for dims in ((7, 7), (1, 7), (7, 1), (6, 7, 7), (1, 7, 7), (1, 1, 7), (6, 1, 7), (2, 1, 1, 7), (2, 6, 7, 7), (2, 1, 7, 7), (1, 1, 7, 7), (1, 6, 1, 7), (2, 6, 1, 1)):
        module_case(2, 7, 48, 6, "random", dims, mask_scale=4.0)
    module_case(1, 33, 32, 4, "random", (4, 33, 33), mask_scale=64.0, tag="_m64")
    # -inf
    module_case(2, 7, 48, 6, "causal", (7, 7))
    module_case(2, 7, 48, 6, "causal", (1, 7, 7), x_scale=8.0, tag="_x8")
    module_case(1, 65, 48, 4, "causal", (1, 1, 65, 65))
    module_case(1, 128, 32, 2, "causal", (128, 128))
    module_case(3, 10, 30, 3, "causal_random", (3, 1, 10, 10), mask_scale=2.0)
    module_case(3, 9, 48, 6, "padding", (3, 1, 1, 9), lengths=[9, 4, 1])
    module_case(1, 33, 32, 4, "padding", (1, 1, 33), lengths=[20])
    module_case(2, 35, 24, 3, "padding", (2, 1, 1, 35), lengths=[17, 34])
    module_case(2, 11, 40, 5, "random_drop", (2, 5, 11, 11), mask_scale=2.0)
    module_case(1, 34, 32, 8, "random_drop", (8, 34, 34))
    # the finite filler: an ordinary number
    module_case(2, 7, 48, 6, "causal", (7, 7), fill=-1e9)
    module_case(3, 9, 48, 6, "padding", (3, 1, 1, 9), fill=-1e9, lengths=[9, 4, 1])
    module_case(2, 7, 48, 6, "rows", (2, 1, 7, 7), fill=-1e9)
    module_case(2, 7, 48, 6, "all", (1, 7), fill=-1e9)


# --------------------------------------------------------------------------------------------------------------------
# 4. core: scaled dot-product attention with grouped heads, masks and score functions

def alibi_slopes(heads):
    """Press et al., "Train Short, Test Long": 2^(-8/n * (1..n)) for n a power of two; else those of the power below, then every other one of the double."""
    n = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / n) for i in range(1, n + 1)]
    return slopes + [2.0 ** (-4.0 * i / n) for i in range(1, 2 * n + 1, 2)][:heads - n]


def attention(q, k, v, mask, scale, causal, window, softcap, slopes):
    S, T, H = q.shape[2], k.shape[2], q.shape[1]
    k, v = (t.repeat_interleave(H // k.shape[1], 1) for t in (k, v))       # query head h reads key head h / (H/G)
    scores = q @ k.transpose(2, 3) * scale                                # [B,H,S,T]
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    query = torch.arange(S).unsqueeze(1) + (T - S)                        # lower-right: the last query stands at the last key
    key = torch.arange(T)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * (query - key).to(q.dtype)
    if mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(key > query, -INF)
    if window:
        scores = scores.masked_fill(key <= query - window, -INF)
    empty = (scores == -INF).all(-1)
    weights = F.softmax(scores, -1).masked_fill(empty.unsqueeze(-1), 0)    # PyTorch gives NaN in an empty row; attn gives 0 and -inf
    return {"output": weights @ v, "lse": torch.logsumexp(scores, -1)}


def reorder_head(inputs, generator):
    q, k, *rest = inputs
    order = torch.randperm(q.shape[-1], generator=generator)
    return q[..., order].contiguous(), k[..., order].contiguous(), *rest


def core_case(name, B, H, S, D, G=None, T=None, Dv=None, scale=None, causal=False, window=0, softcap=0.0, alibi=False,
              q_scale=2.0, rule="none", dims=None, fill=-INF, mask_scale=1.0, lengths=None):
    G, T, Dv = G or H, T or S, Dv or D
    scale = 1 / math.sqrt(D) if scale is None else scale
    case = Case("core", name, B=B, H=H, G=G, S=S, T=T, D=D, Dv=Dv, scale=scale, causal=causal, window=window, softcap=softcap, alibi=alibi, mask=rule)
    if dims:
        case.params["mask_rank"] = len(dims)
    if lengths:
        case.params["lengths"] = lengths
    q, k, v = case.stream("q", (B, H, S, D), q_scale), case.stream("k", (B, G, T, D), 2.0), case.stream("v", (B, G, T, Dv))
    mask = case.mask(rule, dims, fill, mask_scale) if dims else None
    slopes = torch.tensor(alibi_slopes(H), dtype=torch.float64) if alibi else None
    exact, _ = case.results(attention, q, k, v, mask, scale, causal, window, softcap, slopes, reorder=reorder_head)
    case.params["empty_rows"] = int((exact["lse"] == -INF).sum())
    if alibi:
        case.store("slopes", slopes)


def core_cases():
    core_case("plain", 2, 3, 8, 16)
    core_case("plain_odd", 1, 2, 37, 11)
    core_case("one_key", 3, 2, 4, 8, T=1)
    core_case("head_size_one", 2, 4, 13, 1)
    core_case("head_size_128", 1, 2, 33, 128, G=1)
    core_case("gqa", 2, 6, 9, 8, G=2)
    core_case("gqa_causal", 1, 8, 33, 12, G=4, causal=True)
    core_case("mqa", 1, 8, 7, 16, G=1)
    core_case("cross", 1, 4, 5, 8, T=13)
    core_case("decode", 2, 4, 1, 16, G=2, T=37, causal=True)
    core_case("causal", 1, 2, 65, 16, causal=True)
    core_case("causal_lower_right", 2, 3, 5, 8, T=13, causal=True)
    core_case("causal_more_queries", 2, 2, 9, 8, T=5, causal=True)          # four empty rows in each head
    core_case("window_1", 1, 2, 9, 8, causal=True, window=1)
    core_case("window_4", 1, 2, 17, 8, causal=True, window=4)
    core_case("window_lower_right", 2, 4, 6, 8, G=2, T=20, causal=True, window=5)
    core_case("window_wide", 1, 2, 10, 8, causal=True, window=100)
    core_case("value_wider", 2, 2, 7, 8, Dv=24)
    core_case("value_narrower", 1, 6, 10, 24, G=3, T=14, Dv=5, causal=True)
    core_case("scale_1", 1, 3, 9, 10, scale=1.0)
    core_case("scale_small", 1, 3, 9, 10, scale=0.05)
    core_case("softcap_50", 1, 4, 12, 16, softcap=50.0, q_scale=16.0)
    core_case("softcap_2", 2, 4, 12, 8, G=2, softcap=2.0, causal=True)
    core_case("alibi_8", 1, 8, 12, 8, causal=True, alibi=True)
    core_case("alibi_6", 2, 6, 9, 8, G=3, causal=True, alibi=True)
    core_case("alibi_12", 1, 12, 7, 4, T=19, causal=True, alibi=True)
    core_case("alibi_1", 1, 1, 21, 8, causal=True, alibi=True)
    core_case("softcap_alibi_window", 1, 5, 11, 8, T=18, causal=True, window=6, softcap=5.0, alibi=True)
    core_case("large", 1, 2, 33, 16, q_scale=64.0)
    core_case("padding", 3, 4, 6, 8, G=2, T=11, rule="padding", dims=(3, 1, 1, 11), lengths=[11, 6, 1])
    core_case("padding_causal", 2, 2, 12, 8, causal=True, rule="padding", dims=(2, 1, 1, 12), lengths=[12, 5])
    core_case("drop", 2, 3, 9, 8, T=14, rule="drop", dims=(2, 3, 9, 14))
    core_case("bias", 2, 4, 7, 8, G=2, T=10, rule="random", dims=(4, 7, 10), mask_scale=2.0)
    core_case("bias_softcap_causal", 1, 4, 16, 8, softcap=3.0, causal=True, rule="random", dims=(1, 4, 16, 16), mask_scale=2.0)


# --------------------------------------------------------------------------------------------------------------------
# 5. mha: torch.nn.MultiheadAttention, code that is not ours, with the same weights in the same streams as module

def run_mha(x, p, heads, attn_mask, key_padding_mask):
    bias = "bq" in p
    mha = nn.MultiheadAttention(x.shape[-1], heads, bias=bias, batch_first=True).eval().to(x.dtype)
    with torch.no_grad():
        mha.in_proj_weight.copy_(torch.cat([p["wq"], p["wk"], p["wv"]]))
        mha.out_proj.weight.copy_(p["wo"])
        if bias:
            mha.in_proj_bias.copy_(torch.cat([p["bq"], p["bk"], p["bv"]]))
            mha.out_proj.bias.copy_(p["bo"])
    # Gradients stay on for the call: without them PyTorch takes another, fused path that handles fewer masks.
    output, weights = mha(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=True, average_attn_weights=False)
    return {"output": output, "weights": weights}


def mha_case(name, B, S, E, H, mask=None, flags=None, key_padding=None, bias=True):
    case = Case("mha", name, B=B, S=S, E=E, H=H, bias=bias)
    if key_padding:
        case.params["lengths"] = key_padding
    x = case.stream("x", (B, S, E))
    p = projection_streams(case, E)
    if not bias:
        p = {key: value for key, value in p.items() if key[0] == "w"}
        case.tensors = [t for t in case.tensors if t[0] != "b"]
    attn_mask = case.mask(*mask, name="attn_mask") if mask else case.flags(*flags, name="attn_mask_bool") if flags else None
    padding = case.flags("key_padding", (B, S), "key_padding_mask") if key_padding else None
    exact, _ = case.results(run_mha, x, p, H, attn_mask, padding, reorder=reorder_projections)
    if bias and padding is None and not (attn_mask is not None and attn_mask.dim() == 3):   # the two sources agree
        ours = attn_mask if mask else None if attn_mask is None else torch.zeros(S, S).double().masked_fill(attn_mask, -INF)
        assert torch.allclose(run_llama_attention(x, p, H, ours)["output"], exact["output"], rtol=0, atol=1e-12)


def mha_cases():
    mha_case("plain", 2, 7, 48, 6)
    mha_case("plain_no_bias", 2, 9, 32, 4, bias=False)
    mha_case("float_causal", 2, 9, 32, 4, mask=("causal", (9, 9)))
    mha_case("float_random", 2, 10, 24, 3, mask=("random", (10, 10), -INF, 4.0))
    mha_case("float_random_per_head", 2, 6, 16, 4, mask=("random_drop", (8, 6, 6), -INF, 2.0))
    mha_case("bool_causal", 1, 17, 32, 2, flags=("causal", (17, 17)))
    mha_case("bool_drop", 2, 11, 40, 5, flags=("drop", (11, 11)))
    mha_case("key_padding", 3, 8, 32, 4, key_padding=[8, 5, 1])
    mha_case("key_padding_bool_causal", 2, 12, 24, 2, flags=("causal", (12, 12)), key_padding=[12, 7])


# --------------------------------------------------------------------------------------------------------------------
# 6. linear and softmax

def linear_cases():
    for name, lead, fan_in, fan_out, bias, x_scale in (
            ("rank1", (), 48, 64, True, 1.0), ("rank1_no_bias", (), 33, 100, False, 1.0), ("rank2", (9,), 40, 24, True, 1.0),
            ("rank2_no_bias", (16,), 7, 31, False, 1.0), ("rank3", (2, 7), 48, 33, True, 1.0), ("rank3_no_bias_large", (3, 5), 96, 17, False, 64.0),
            ("rank4", (2, 3, 4), 12, 20, True, 1.0), ("one_to_one", (128,), 1, 1, True, 1.0), ("long_sum", (2, 3), 1024, 24, True, 1.0)):
        case = Case("linear", name, rank=len(lead) + 1, bias=bias, **{"in": fan_in, "out": fan_out})
        x = case.stream("x", lead + (fan_in,), x_scale)
        w = case.stream("w", (fan_out, fan_in), 2.0 ** -round(math.log2(fan_in) / 2))
        b = case.stream("b", (fan_out,), 0.5) if bias else None
        case.results(lambda x, w, b: {"output": F.linear(x, w, b)}, x, w, b)


def softmax_cases():
    for name, dims, scale in (("rank1", (101,), 4.0), ("rank2", (9, 33), 4.0), ("rank3", (3, 5, 17), 8.0), ("rank4", (2, 3, 4, 7), 2.0),
                              ("one_column", (64, 1), 4.0), ("large", (8, 40), 1024.0), ("very_large", (8, 40), 2.0 ** 100), ("nearly_flat", (4, 65), 2.0 ** -12)):
        case = Case("softmax", name, rank=len(dims))
        case.results(lambda x: {"output": F.softmax(x, -1)}, case.stream("x", dims, scale))
    case = Case("softmax", "some_minus_infinity", rank=2)
    case.results(lambda x: {"output": F.softmax(x, -1)}, case.mask("random_drop", (12, 29), -INF, 4.0, name="x"))


# --------------------------------------------------------------------------------------------------------------------
# 7. rotary: the frequency scalings that Hugging Face transformers publishes (modeling_rope_utils), own code.
#    In float32 every tensor operation is float32, as there; scalars (base, attention factor, correction range) are Python floats in both.

def powers(base, d, dtype):                                               # base^(2i/d), i in [0, d/2)
    return base ** (torch.arange(0, d, 2).to(dtype) / d)


def inverse_frequencies(p, dtype):
    """Returns the d/2 inverse frequencies, and the factor on cos and sin."""
    kind, d, base = p["type"], p["D"], p["theta"]
    if kind == "dynamic":
        length, limit = max(p["seq_len"], p["max_position"]), p["max_position"]
        base = base * (p["factor"] * length / limit - (p["factor"] - 1)) ** (d / (d - 2))
    power = powers(base, d, dtype)
    if kind in ("default", "dynamic"):
        return 1 / power, 1.0
    if kind == "linear":
        return 1 / power / p["factor"], 1.0
    if kind == "llama3":
        inverse, low, high, context = 1 / power, p["low_freq_factor"], p["high_freq_factor"], p["original_max_position"]
        wavelength = 2 * math.pi / inverse
        blend = (context / wavelength - low) / (high - low)
        blended = (1 - blend) * inverse / p["factor"] + blend * inverse
        return torch.where(wavelength > context / low, inverse / p["factor"], torch.where(wavelength < context / high, inverse, blended)), 1.0
    if kind == "yarn":
        def dimension(rotations):                                         # the pair that turns so often over the original context
            return d * math.log(p["original_max_position"] / (rotations * 2 * math.pi)) / (2 * math.log(base))
        low, high = dimension(p["beta_fast"]), dimension(p["beta_slow"])
        if p["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        high = high + 0.001 if low == high else high
        ramp = ((torch.arange(d // 2).to(dtype) - low) / (high - low)).clamp(0, 1)
        default = 0.1 * math.log(p["factor"]) + 1 if p["factor"] > 1 else 1.0
        return 1 / (p["factor"] * power) * ramp + 1 / power * (1 - ramp), p.get("attention_factor", default)
    if kind == "longrope":
        chosen = p["long_factor"] if p["seq_len"] > p["original_max_position"] else p["short_factor"]
        factor = p["max_position"] / p["original_max_position"]
        default = math.sqrt(1 + math.log(factor) / math.log(p["original_max_position"])) if factor > 1 else 1.0
        return 1 / (torch.tensor(chosen, dtype=dtype) * power), p.get("attention_factor", default)
    raise ValueError(kind)


def rotary(q, p):
    """Tables [P, d/2] at P positions, and q [B,H,P,d] rotated in both layouts."""
    inverse, factor = inverse_frequencies(p, q.dtype)
    angle = torch.tensor(p["positions"], dtype=q.dtype).unsqueeze(1) * inverse
    cos, sin = angle.cos() * factor, angle.sin() * factor
    a, b = q.chunk(2, -1)                                                 # half-split: pair i is (i, i + d/2)
    half = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = q[..., 0::2], q[..., 1::2]                                     # interleaved: pair i is (2i, 2i + 1)
    interleaved = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    return {"inv_freq": inverse, "cos": cos, "sin": sin, "half_split": half, "interleaved": interleaved}


def rotary_case(name, kind, D, positions, theta=10000.0, **scaling):
    p = {"type": kind, "D": D, "theta": theta, **scaling, "positions": positions}
    case = Case("rotary", name, B=1, H=2, S=len(positions), **p)
    q = case.stream("q", (1, 2, len(positions), D))
    if kind in ("yarn", "longrope"):
        case.params.setdefault("attention_factor", inverse_frequencies(p, torch.float64)[1])
        case.params["attention_factor_given"] = "attention_factor" in scaling
    case.results(rotary, q, p)


def rotary_cases():
    few, far = [0, 1, 2, 3, 7, 100], [0, 1, 17, 511, 4095, 32767, 131071]
    rotary_case("default", "default", 16, few)
    rotary_case("default_far", "default", 64, far)
    rotary_case("default_pair", "default", 2, far)
    rotary_case("default_theta", "default", 10, far, theta=500000.0)
    rotary_case("linear", "linear", 32, far, factor=4.0)
    rotary_case("linear_fraction", "linear", 12, few, factor=2.5)
    rotary_case("dynamic_short", "dynamic", 16, few, factor=2.0, max_position=2048, seq_len=512)      # as default
    rotary_case("dynamic_long", "dynamic", 32, far, factor=2.0, max_position=2048, seq_len=8192)
    rotary_case("dynamic_factor8", "dynamic", 64, few, factor=8.0, max_position=4096, seq_len=131072)
    llama3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    rotary_case("llama3_8", "llama3", 128, far[:5], theta=500000.0, factor=8.0, **llama3)
    rotary_case("llama3_32", "llama3", 64, far, theta=500000.0, factor=32.0, **llama3)
    yarn = dict(original_max_position=4096, beta_fast=32.0, beta_slow=1.0)
    rotary_case("yarn", "yarn", 64, far, factor=16.0, truncate=True, **yarn)
    rotary_case("yarn_no_truncate", "yarn", 64, far, theta=150000.0, factor=32.0, truncate=False, **yarn)
    rotary_case("yarn_attention_factor", "yarn", 32, few, factor=4.0, truncate=True, attention_factor=1.25, **yarn)
    rotary_case("yarn_betas", "yarn", 16, far, factor=8.0, truncate=True, original_max_position=32768, beta_fast=16.0, beta_slow=2.0)
    factors = dict(short_factor=[1 + i / 32 for i in range(16)], long_factor=[1 + i * i / 4 for i in range(16)])
    longrope = dict(original_max_position=4096, max_position=131072, **factors)
    rotary_case("longrope_short", "longrope", 32, few, seq_len=4096, **longrope)
    rotary_case("longrope_long", "longrope", 32, far, seq_len=4097, **longrope)
    rotary_case("longrope_attention_factor", "longrope", 32, few, seq_len=131072, attention_factor=1.5, **longrope)


# --------------------------------------------------------------------------------------------------------------------

def write_files(name, script):
    """Writes <name>.bin and <name>.txt into the folder that was given, or beside the script."""
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, name + ".bin"), "wb") as out:
        out.write(Case.binary)
    with open(os.path.join(folder, name + ".txt"), "w", newline="\n") as out:
        out.write(f"# Made by {script} with PyTorch {torch.__version__}; README.md says how to read it.\n")
        out.write(f"binary {name}.bin bytes={len(Case.binary)} fnv1a64={fnv1a64(Case.binary):016x}\n")
        for case in Case.all:
            out.write(case.line() + "\n")
    print(f"{len(Case.all)} cases, {len(Case.binary)} bytes")


def main():
    for cases in (module_cases, core_cases, mha_cases, linear_cases, softmax_cases, rotary_cases):
        cases()
    write_files("torch_cases", "make_torch_cases.py")


if __name__ == "__main__":
    main()
