"""DeepSeek-V3 for training, in plain PyTorch: MLA, grouped sigmoid gate, experts, one MTP layer.

The semantics are those of transformers' DeepseekV3ForCausalLM; evaluate.py compares the two.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab: int = 1024
    hidden: int = 128
    layers: int = 4  # one dense, three MoE; the MTP layer comes on top
    dense_layers: int = 1
    heads: int = 8
    q_rank: int = 96
    kv_rank: int = 64
    nope: int = 32
    rope: int = 16
    v: int = 32
    intermediate: int = 512
    moe_intermediate: int = 64
    experts: int = 32
    groups: int = 8
    top_groups: int = 4
    top_k: int = 4
    routed_scale: float = 2.5
    eps: float = 1e-6
    theta: float = 10000.0
    yarn_factor: float = 8.0
    yarn_original: int = 256
    beta_fast: int = 32
    beta_slow: int = 1
    max_positions: int = 2048


# ---- what the released file can hold -----------------------------------------------------------

def fp8_blocks(w, block=128):
    """w [..., M, N] -> (e4m3 values [..., M, N], scales [..., ceil(M/128), ceil(N/128)]); w ~ values * scale."""
    m, n = w.shape[-2:]
    bm, bn = -(-m // block), -(-n // block)
    padded = F.pad(w, (0, bn * block - n, 0, bm * block - m))
    tiles = padded.reshape(*w.shape[:-2], bm, block, bn, block)
    scale = (tiles.abs().amax(dim=(-3, -1), keepdim=True) / 448.0).clamp_min(1e-12)
    values = (tiles / scale).to(torch.float8_e4m3fn).reshape(padded.shape)[..., :m, :n]
    return values, scale.reshape(*w.shape[:-2], bm, bn)


def fp8_expand(values, scale, block=128):
    m, n = values.shape[-2:]
    grid = scale.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., :m, :n]
    return values.float() * grid


def stored_as_fp8(w):
    """Straight-through: the forward pass sees the released weight, the gradient passes to the f32 one."""
    with torch.no_grad():
        delta = fp8_expand(*fp8_blocks(w)) - w
    return w + delta


def stored_as_bf16(w):
    with torch.no_grad():
        delta = w.bfloat16().float() - w
    return w + delta


# ---- parts -----------------------------------------------------------------------------------

class RMSNorm(nn.Module):
    def __init__(self, n, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps
        self.released = False

    def forward(self, x):
        w = stored_as_bf16(self.weight) if self.released else self.weight
        return F.rms_norm(x, (x.shape[-1],), w, self.eps)


class Matrix(nn.Module):
    """Weights of one or more linear maps, [..., out, in]. `released` switches rounding to the release's format on."""

    def __init__(self, *shape, fp8=True, gain=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) * gain / math.sqrt(shape[-1]))
        self.fp8 = fp8
        self.released = False

    def effective(self):
        if not self.released:
            return self.weight
        return stored_as_fp8(self.weight) if self.fp8 else stored_as_bf16(self.weight)

    def forward(self, x):
        return F.linear(x, self.effective())


def yarn_inv_freq(c):
    dim = c.rope
    base = 1.0 / (c.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))

    def correction_dim(rotations):
        return dim * math.log(c.yarn_original / (rotations * 2 * math.pi)) / (2 * math.log(c.theta))

    low = max(math.floor(correction_dim(c.beta_fast)), 0)
    high = min(math.ceil(correction_dim(c.beta_slow)), dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return base / c.yarn_factor * ramp + base * (1 - ramp)


def rotate(x, cos, sin):
    """Rotary embedding of interleaved pairs (x0,x1), (x2,x3), ...; cos and sin: [batch, 1, time, dim/2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)


def masks(doc):
    """Attention stays inside a document; positions count from its start."""
    b, t = doc.shape
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    same = (doc[:, :, None] == doc[:, None, :]) & causal
    positions = torch.arange(t).expand(b, t)
    start = torch.where(F.pad(doc[:, 1:] != doc[:, :-1], (1, 0)), positions, 0).cummax(dim=1)[0]
    return torch.zeros(b, 1, t, t).masked_fill(~same[:, None], float("-inf")), positions - start


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_a_proj = Matrix(c.q_rank, c.hidden)
        self.q_a_layernorm = RMSNorm(c.q_rank)
        self.q_b_proj = Matrix(c.heads * (c.nope + c.rope), c.q_rank)
        self.kv_a_proj_with_mqa = Matrix(c.kv_rank + c.rope, c.hidden)
        self.kv_a_layernorm = RMSNorm(c.kv_rank)
        self.kv_b_proj = Matrix(c.heads * (c.nope + c.v), c.kv_rank)
        self.o_proj = Matrix(c.hidden, c.heads * c.v, gain=0.05)
        mscale = 0.1 * math.log(c.yarn_factor) + 1.0  # mscale_all_dim = 1
        self.scale = (c.nope + c.rope) ** -0.5 * mscale * mscale

    def forward(self, x, cos, sin, mask, cache=None):
        c = self.c
        b, t, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, t, c.heads, c.nope + c.rope).transpose(1, 2)
        q_nope, q_rope = q.split([c.nope, c.rope], dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c.kv_rank, c.rope], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(b, t, c.heads, c.nope + c.v).transpose(1, 2)
        k_nope, v = kv.split([c.nope, c.v], dim=-1)
        k_rope = rotate(k_rope.unsqueeze(1), cos, sin)
        q = torch.cat([q_nope, rotate(q_rope, cos, sin)], dim=-1)
        k = torch.cat([k_nope, k_rope.expand(b, c.heads, t, c.rope)], dim=-1)
        if cache is not None:  # evaluation only; holds expanded keys and values
            if self in cache:
                k = torch.cat([cache[self][0], k], dim=2)
                v = torch.cat([cache[self][1], v], dim=2)
            cache[self] = (k, v)
        # The value heads are padded to the keys' width so that the fused kernel accepts them.
        v = F.pad(v, (0, c.nope + c.rope - c.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        out = out[..., : c.v].transpose(1, 2).reshape(b, t, c.heads * c.v)
        return self.o_proj(out)


class MLP(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj = Matrix(inner, hidden)
        self.up_proj = Matrix(inner, hidden)
        self.down_proj = Matrix(hidden, inner, gain=0.05)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Grouped(torch.autograd.Function):
    """Rows of x, sorted by expert, times that expert's matrix: no padding, no dropped token."""

    @staticmethod
    def forward(ctx, x, w, counts):
        ctx.save_for_backward(x, w)
        ctx.counts = counts
        out = x.new_empty(x.shape[0], w.shape[1])
        start = 0
        for e, n in enumerate(counts):
            if n:
                torch.mm(x[start:start + n], w[e].t(), out=out[start:start + n])
            start += n
        return out

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        grad = grad.contiguous()
        dx, dw = torch.empty_like(x), torch.zeros_like(w)
        start = 0
        for e, n in enumerate(ctx.counts):
            if n:
                g = grad[start:start + n]
                torch.mm(g, w[e], out=dx[start:start + n])
                torch.mm(g.t(), x[start:start + n], out=dw[e])
            start += n
        return dx, dw, None


class Permute(torch.autograd.Function):
    """x[order]; the gradient is grad[inverse], much cheaper than the scatter that autograd would use."""

    @staticmethod
    def forward(ctx, x, order, inverse):
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.inverse), None, None


class MoE(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.gate = Matrix(c.experts, c.hidden, fp8=False, gain=0.5)
        self.register_buffer("bias", torch.zeros(c.experts))  # e_score_correction_bias
        self.gate_up = Matrix(c.experts, 2, c.moe_intermediate, c.hidden)
        self.down = Matrix(c.experts, c.hidden, c.moe_intermediate, gain=0.05)
        self.shared = MLP(c.hidden, c.moe_intermediate)
        self.load = None

    def route(self, x):
        c = self.c
        scores = self.gate(x).sigmoid()
        with torch.no_grad():
            biased = scores + self.bias
            per_group = biased.view(-1, c.groups, c.experts // c.groups)
            group_score = per_group.topk(2, dim=-1)[0].sum(-1)
            keep = torch.zeros_like(group_score, dtype=torch.bool).scatter_(1, group_score.topk(c.top_groups, dim=-1)[1], True)
            biased = per_group.masked_fill(~keep.unsqueeze(-1), -torch.inf).view(-1, c.experts)
            chosen = biased.topk(c.top_k, dim=-1)[1]
        weights = scores.gather(1, chosen)
        return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * c.routed_scale

    def forward(self, x):
        c = self.c
        flat = x.reshape(-1, c.hidden)
        chosen, weights = self.route(flat)
        order = chosen.flatten().argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel())
        self.load = torch.bincount(chosen.flatten(), minlength=c.experts)
        counts = self.load.tolist()
        copies = flat.unsqueeze(1).expand(-1, c.top_k, -1).reshape(-1, c.hidden)
        inner = Grouped.apply(Permute.apply(copies, order, place), self.gate_up.effective().flatten(1, 2), counts)
        gate, up = inner.chunk(2, dim=-1)
        out = Grouped.apply(F.silu(gate) * up, self.down.effective(), counts)
        # Back to the tokens' order, then one weighted sum over each token's experts.
        per_token = Permute.apply(out, place, order).view(-1, c.top_k, c.hidden)
        routed = torch.bmm(weights.unsqueeze(1), per_token).squeeze(1)
        return (routed + self.shared(flat)).view(x.shape)


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden, c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.eps)
        self.mlp = MLP(c.hidden, c.intermediate) if dense else MoE(c)

    def forward(self, x, *rope_mask_cache):
        x = x + self.self_attn(self.input_layernorm(x), *rope_mask_cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c=Config()):
        super().__init__()
        self.c = c
        self.embed = Matrix(c.vocab, c.hidden, fp8=False, gain=0.5 * math.sqrt(c.hidden))
        self.layers = nn.ModuleList(Layer(c, i < c.dense_layers) for i in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)
        self.head = Matrix(c.vocab, c.hidden, fp8=False, gain=0.1)
        # The MTP layer; its embedding and head are the model's own.
        self.enorm = RMSNorm(c.hidden, c.eps)
        self.hnorm = RMSNorm(c.hidden, c.eps)
        self.eh_proj = Matrix(c.hidden, 2 * c.hidden, fp8=False, gain=1.0)
        self.mtp_layer = Layer(c, False)
        self.mtp_norm = RMSNorm(c.hidden, c.eps)
        self.register_buffer("inv_freq", yarn_inv_freq(c), persistent=False)

    def set_released(self, on):
        for m in self.modules():
            if hasattr(m, "released"):
                m.released = on

    def moe_layers(self):
        return [l.mlp for l in [*self.layers, self.mtp_layer] if isinstance(l.mlp, MoE)]

    def rope(self, positions):
        angle = positions[:, None, :, None].float() * self.inv_freq
        return angle.cos(), angle.sin()

    def embedding(self, ids):
        return F.embedding(ids, self.embed.effective())

    def trunk(self, ids, positions, mask=None, cache=None):
        """-> hidden states before the final norm"""
        cos, sin = self.rope(positions)
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        return x

    def logits(self, hidden):
        return self.head(self.norm(hidden))

    def mtp(self, hidden, next_ids, positions, mask=None, cache=None):
        """The hidden state of position i and the token at i+1 -> logits of the token at i+2."""
        cos, sin = self.rope(positions)
        x = self.eh_proj(torch.cat([self.enorm(self.embedding(next_ids)), self.hnorm(hidden)], dim=-1))
        x = self.mtp_layer(x, cos, sin, mask, cache)
        return self.head(self.mtp_norm(x))
