"""Makes torch_gradients.bin and torch_gradients.txt: gradients by PyTorch's autograd in float64, and PyTorch's own float32 error.

    python3 make_torch_gradients.py            (Debian 12: python3-torch 1.13.1)

The formats and the generator are those of make_torch_cases.py. A case asks for the gradients of sum(grad_output * output).
"""
import math

import torch
import torch.nn.functional as F

import make_torch_cases as common
from make_torch_cases import INF, STREAMS, Case

STREAMS["grad"] = 17
torch.manual_seed(1)


def gradients(function, inputs, grad_output):
    """d sum(grad_output * function(inputs)) / d each input: a dictionary of tensors."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    output = function(leaves)
    (output * grad_output).sum().backward()
    return {"grad_" + name: leaf.grad for name, leaf in leaves.items()}


def store(case, function, inputs, grad_output, reorder):
    """Stores the gradients in float64; for each, PyTorch's float32 error, and the worst of nine orders of the same sums."""
    exact = gradients(function, inputs, grad_output)
    single = {name: t.float() for name, t in inputs.items()}
    found = [gradients(function, single, grad_output.float())]
    generator = torch.Generator().manual_seed(case.params["seed"])
    for _ in range(8):
        changed, back = reorder(single, generator)
        found.append(back(gradients(function, changed, grad_output.float())))
    for name, value in exact.items():
        case.store(name, value)
        errors = [(other[name].double() - value).abs().max().item() for other in found]
        case.params["torch_max_error_" + name] = errors[0]
        case.params["torch_reordered_max_error_" + name] = max(errors)


# --------------------------------------------------------------------------------------------------------------------
# attention: the function of make_torch_cases.py, all of its inputs

def permute_head(inputs, generator):
    """The elements of q and k, and of v, in another order; a function that puts gradients back. grad_output stays: v's order does."""
    order = torch.randperm(inputs["q"].shape[-1], generator=generator)
    undo = order.argsort()
    changed = {name: t[..., order] if name in "qk" else t for name, t in inputs.items()}
    return changed, lambda g: {name: t[..., undo] if name in ("grad_q", "grad_k") else t for name, t in g.items()}


def attention_case(name, B, H, S, D, G=None, T=None, Dv=None, causal=False, window=0, softcap=0.0, alibi=False, q_scale=2.0,
                   rule="none", dims=None, mask_scale=1.0, lengths=None, bias=False):
    G, T, Dv = G or H, T or S, Dv or D
    case = Case("attention_gradient", name, B=B, H=H, G=G, S=S, T=T, D=D, Dv=Dv, causal=causal, window=window, softcap=softcap,
                alibi=alibi, mask=rule, bias=bias)
    if dims:
        case.params["mask_rank"] = len(dims)
    if lengths:
        case.params["lengths"] = lengths
    inputs = {"q": case.stream("q", (B, H, S, D), q_scale), "k": case.stream("k", (B, G, T, D), 2.0), "v": case.stream("v", (B, G, T, Dv))}
    fixed = None
    if dims and rule == "random":
        inputs["mask"] = case.mask(rule, dims, -INF, mask_scale)
    elif dims:
        fixed = case.mask(rule, dims, -INF, mask_scale)
    slopes = torch.tensor(common.alibi_slopes(H), dtype=torch.float64) if alibi else None

    def function(leaves):
        q, dtype = leaves["q"], leaves["q"].dtype
        mask = leaves.get("mask", fixed.to(dtype) if fixed is not None else None)
        if bias:                          # added before the soft cap: a ScoreBias
            k = leaves["k"].repeat_interleave(H // G, 1)
            scores = q @ k.transpose(2, 3) / math.sqrt(D) + mask
            scores = softcap * torch.tanh(scores / softcap)
            if causal:
                scores = scores.masked_fill(torch.arange(T) > torch.arange(S).unsqueeze(1) + (T - S), -INF)
            return F.softmax(scores, -1) @ leaves["v"].repeat_interleave(H // G, 1)
        return common.attention(q, leaves["k"], leaves["v"], mask, 1 / math.sqrt(D), causal, window, softcap,
                                slopes.to(dtype) if alibi else None)["output"]

    store(case, function, inputs, case.stream("grad", (B, H, S, Dv)), permute_head)


def attention_cases():
    attention_case("plain", 2, 3, 8, 16)
    attention_case("odd", 1, 2, 37, 11, Dv=7)
    attention_case("long", 1, 2, 130, 16, T=200)
    attention_case("gqa_causal", 1, 8, 33, 12, G=4, causal=True)
    attention_case("mqa", 2, 6, 21, 8, G=1, T=30)
    attention_case("window", 1, 4, 40, 8, G=2, causal=True, window=7)
    attention_case("softcap", 1, 4, 30, 16, softcap=3.0, q_scale=8.0)
    attention_case("alibi", 1, 8, 24, 8, causal=True, alibi=True)
    attention_case("large", 1, 2, 33, 16, q_scale=16.0)
    attention_case("padding", 3, 4, 9, 8, G=2, T=11, rule="padding", dims=(3, 1, 1, 11), lengths=[11, 6, 1])
    attention_case("drop", 2, 3, 9, 8, T=14, rule="drop", dims=(2, 3, 9, 14))
    for dims in ((20,), (12, 20), (4, 12, 20), (2, 4, 12, 20), (1, 4, 12, 20), (2, 1, 12, 20), (1, 1, 12, 20), (2, 1, 1, 20), (1, 4, 1, 1), (4, 12, 1)):
        attention_case("mask_" + common.dims_text(dims), 2, 4, 12, 8, G=2, T=20, rule="random", dims=dims, mask_scale=2.0, causal=len(dims) % 2 == 0)
    attention_case("bias", 2, 4, 16, 8, softcap=3.0, causal=True, rule="random", dims=(1, 4, 16, 16), mask_scale=2.0, bias=True)
    attention_case("bias_row", 2, 4, 16, 8, T=24, softcap=2.0, rule="random", dims=(4, 1, 24), mask_scale=2.0, bias=True)


# --------------------------------------------------------------------------------------------------------------------
# module: LlamaAttention with grouped heads, half-split rotary, tied key and value

def module_function(H, G, causal, rotary, tied):
    def function(leaves):
        x = leaves["x"]
        B, S, E = x.shape
        D = leaves["wq"].shape[0] // H

        def heads(letter, count):
            return F.linear(x, leaves["w" + letter], leaves["b" + letter]).unflatten(-1, (count, D)).transpose(1, 2)
        q, k, v = heads("q", H), heads("k", G), heads("k" if tied else "v", G)
        if rotary:
            angle = torch.arange(S).to(x.dtype).unsqueeze(1) / common.powers(10000.0, D, x.dtype)
            cos, sin = angle.cos(), angle.sin()

            def rotate(t):
                a, b = t.chunk(2, -1)
                return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
            q, k = rotate(q), rotate(k)
        context = common.attention(q, k, v, leaves.get("mask"), 1 / math.sqrt(D), causal, 0, 0.0, None)["output"]
        return F.linear(context.transpose(1, 2).flatten(2), leaves["wo"], leaves["bo"])
    return function


def permute_hidden(inputs, generator):
    """The elements of x in another order."""
    order = torch.randperm(inputs["x"].shape[-1], generator=generator)
    undo = order.argsort()
    moved = ("x", "wq", "wk", "wv")
    changed = {name: t[..., order].contiguous() if name in moved else t for name, t in inputs.items()}
    return changed, lambda g: {name: t[..., undo] if name[5:] in moved else t for name, t in g.items()}


def module_case(name, B, S, E, H, G=None, causal=False, rotary=False, tied=False, dims=None):
    G = G or H
    D = E // H
    case = Case("module_gradient", name, B=B, S=S, E=E, H=H, G=G, causal=causal, rotary=rotary, tied=tied)
    unit = 2.0 ** -round(math.log2(E) / 2)
    inputs = {"x": case.stream("x", (B, S, E))}
    for letter, rows, weight, bias in (("q", H * D, 4, 0.5), ("k", G * D, 4, 0.5), ("v", G * D, 2, 0.25), ("o", E, 2, 0.25)):
        if tied and letter == "v":
            continue
        inputs["w" + letter] = case.stream("w" + letter, (rows, E), weight * unit)
        inputs["b" + letter] = case.stream("b" + letter, (rows,), bias)
    if dims:
        case.params["mask_rank"] = len(dims)
        inputs["mask"] = case.mask("random", dims, -INF, 2.0)
    store(case, module_function(H, G, causal, rotary, tied), inputs, case.stream("grad", (B, S, E)), permute_hidden)


def module_cases():
    module_case("plain", 2, 7, 48, 6)
    module_case("causal", 1, 33, 32, 4, causal=True)
    module_case("gqa_rotary", 2, 19, 48, 6, G=2, causal=True, rotary=True)
    module_case("tied", 2, 9, 32, 4, causal=True, tied=True)
    module_case("tied_rotary", 2, 9, 32, 4, G=2, causal=True, rotary=True, tied=True)
    module_case("mask_rank_2", 2, 8, 24, 3, dims=(8, 8))
    module_case("mask_rank_3", 2, 8, 24, 3, dims=(3, 8, 8))
    module_case("mask_rank_4", 2, 8, 24, 3, dims=(2, 1, 8, 8))


def main():
    attention_cases()
    module_cases()
    common.write_files("torch_gradients", "make_torch_gradients.py")


if __name__ == "__main__":
    main()
