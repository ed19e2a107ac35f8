"""The models a second time: float64, one token after the other, written from the papers and from what the keys of the peer's configurations
mean (flash-linear-attention 0.6.0); nothing is shared with flashlin's own code. Makes golden checkpoints with settings of all kinds and
lets `flashlin verify` compare, in chunk and in recurrent mode.

usage: python tests/python/second.py PATH_OF_FLASHLIN [--keep DIR] [NAME...]

With JAX installed the norms of all gradients are compared too; without it they are listed as not to be had.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

try:
    import jax

    jax.config.update("jax_enable_x64", True)
except ImportError:
    jax = None

# What the models compute with: numpy for values, JAX while a gradient is taken.
xp = np

VARLEN = [0, 17, 80, 150]
BASE = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 97, "intermediate_size": 40, "initializer_range": 0.02}
HYBRID = [{"layers": [1], "num_heads": 4, "num_kv_heads": 2, "qkv_bias": True, "window_size": 9, "rope_theta": 500.0}]

# Defaults of the peer's configuration classes, where a model below reads the key.
DEFAULTS = {
    "gla": {"expand_k": 0.5, "expand_v": 1.0, "num_heads": 4, "num_kv_heads": None, "feature_map": None, "use_short_conv": False,
            "use_output_gate": True, "clamp_min": None, "elementwise_affine": True, "fuse_norm": True},
    "retnet": {"expand_k": 1.0, "expand_v": 2.0, "num_heads": 8, "num_kv_heads": None, "feature_map": None, "use_output_gate": True,
               "elementwise_affine": True, "fuse_norm": True, "hidden_ratio": 2},
    "delta_net": {"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "use_gate": False, "use_short_conv": True, "use_beta": True,
                  "allow_neg_eigval": False, "qk_norm": "l2", "qk_activation": "silu"},
    "gated_deltanet": {"expand_v": 2.0, "head_dim": 256, "num_heads": 6, "num_v_heads": None, "use_gate": True, "use_short_conv": True,
                       "allow_neg_eigval": False, "output_gate_activation": "swish"},
    "kda": {"expand_v": 1.0, "head_dim": 128, "num_heads": 16, "num_v_heads": None, "use_short_conv": True, "allow_neg_eigval": False,
            "lower_bound": None},
    "mamba2": {"head_dim": 64, "state_size": 128, "expand": 2, "n_groups": 1, "D_has_hdim": False, "rmsnorm": True,
               "norm_before_gate": False, "dt_limit": [0.0, math.inf], "norm_eps": 1e-5, "hidden_act": "silu"},
    "transformer": {"num_heads": 32, "num_kv_heads": None, "qkv_bias": False, "qk_norm": False, "window_size": None, "rope_theta": 10000.0},
}
COMMON = {"norm_eps": 1e-6, "hidden_ratio": 4, "intermediate_size": None, "tie_word_embeddings": False, "attn": None, "hidden_act": "swish",
          "pad_token_id": None, "use_l2warp": False}

CASES = {
    "gla": {"num_heads": 2},
    "gla-kv-conv": {"num_heads": 4, "num_kv_heads": 2, "use_short_conv": True, "conv_size": 3, "clamp_min": -0.03, "expand_k": 1.0},
    "gla-ungated": {"num_heads": 2, "use_output_gate": False, "elementwise_affine": False, "feature_map": "gelu", "attn": HYBRID},
    "gla-null-affine": {"num_heads": 2, "elementwise_affine": None, "feature_map": "logsigmoid", "expand_v": 2.0, "norm_eps": 1e-4},
    "gla-unfused": {"num_heads": 4, "fuse_norm": False, "feature_map": "sqrelu", "tie_word_embeddings": True, "expand_k": 1 / 3},
    "gla-mlp": {"num_heads": 2, "intermediate_size": None, "hidden_ratio": 3, "feature_map": "sigmoid", "use_l2warp": True, "pad_token_id": 5},
    "retnet": {"num_heads": 2},
    "retnet-kv": {"num_heads": 4, "num_kv_heads": 2, "feature_map": "gelu", "use_short_conv": True, "attn": HYBRID[0]},
    "retnet-ungated": {"num_heads": 2, "use_output_gate": False, "elementwise_affine": False, "expand_k": 0.5, "expand_v": 1.0},
    "retnet-relu2": {"num_heads": 2, "feature_map": "relu2", "fuse_norm": False, "intermediate_size": None, "elementwise_affine": None},
    "delta_net": {"num_heads": 2},
    "delta_net-sum": {"num_heads": 2, "qk_norm": "sum", "qk_activation": "elu", "use_gate": True, "allow_neg_eigval": True},
    "delta_net-sum-silu": {"num_heads": 2, "qk_norm": "sum", "qk_activation": "silu", "expand_v": 2.0, "attn": HYBRID},
    "delta_net-sum-identity": {"num_heads": 2, "qk_norm": "sum", "qk_activation": "identity", "use_beta": False},
    "delta_net-plain": {"num_heads": 3, "use_short_conv": False, "qk_activation": "relu", "expand_k": 0.5},
    "delta_net-identity": {"num_heads": 4, "use_short_conv": False, "qk_activation": "identity", "use_gate": True, "conv_size": 2},
    "gated_deltanet": {"num_heads": 2, "head_dim": 16},
    "gated_deltanet-gva": {"num_heads": 2, "num_v_heads": 6, "head_dim": 12, "expand_v": 1.5, "allow_neg_eigval": True,
                           "tie_word_embeddings": True, "attn": HYBRID, "pad_token_id": 7},
    "gated_deltanet-bare": {"num_heads": 2, "head_dim": 16, "use_gate": False, "use_short_conv": False, "expand_v": 0.5},
    "gated_deltanet-sigmoid": {"num_heads": 1, "head_dim": 32, "output_gate_activation": "sigmoid", "conv_size": 2, "use_l2warp": True},
    "kda": {"num_heads": 2, "head_dim": 16},
    "kda-bounded": {"num_heads": 1, "num_v_heads": 2, "head_dim": 20, "expand_v": 0.5, "safe_gate": True, "lower_bound": -5.0,
                    "allow_neg_eigval": True, "attn": HYBRID},
    "kda-bound-alone": {"num_heads": 2, "head_dim": 16, "lower_bound": -2.0, "use_short_conv": False, "expand_v": 2.0},
    "mamba2": {"head_dim": 16, "state_size": 12},
    "mamba2-groups": {"head_dim": 16, "state_size": 8, "n_groups": 2, "use_bias": True, "D_has_hdim": True, "norm_before_gate": True,
                      "dt_limit": [0.05, 0.5], "tie_word_embeddings": True, "pad_token_id": 5},
    "mamba2-ungated": {"head_dim": 32, "state_size": 8, "rmsnorm": False, "use_conv_bias": False, "residual_in_fp32": False, "conv_kernel": 3},
    "mamba2-groups-after": {"head_dim": 8, "state_size": 16, "n_groups": 3, "expand": 1, "hidden_act": "gelu", "chunk_size": 32},
    "transformer": {"num_heads": 2},
    "transformer-gqa": {"num_heads": 4, "num_kv_heads": 1, "qkv_bias": True, "qk_norm": True, "window_size": 7, "rope_theta": 300.0,
                        "tie_word_embeddings": True},
    "transformer-window": {"num_heads": 4, "num_kv_heads": 2, "window_size": 1, "max_position_embeddings": 16, "norm_eps": 1e-3},
}


# Functions of one sequence: x is [T, D] or [T, H, d].
def sigmoid(x):
    return 1 / (1 + xp.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return xp.logaddexp(x, 0.0)


def erf(x):
    if xp is not np:
        return jax.scipy.special.erf(x)
    return np.vectorize(math.erf)(x)


def gelu_tanh(x):
    return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def relu(x):
    return xp.where(x > 0, x, 0.0)


# The peer's own table, and that of `transformers`, which its RetNet reads.
PEER_ACTS = {"relu": relu, "sigmoid": sigmoid, "logsigmoid": lambda x: -softplus(-x), "silu": silu, "swish": silu,
             "sqrelu": lambda x: relu(x) ** 2, "gelu": gelu_tanh}
HF_ACTS = {"relu": relu, "sigmoid": sigmoid, "silu": silu, "swish": silu, "relu2": lambda x: relu(x) ** 2, "gelu_new": gelu_tanh,
           "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2)))}


def rms(x, weight, eps):
    y = x / xp.sqrt(xp.mean(x * x, -1, keepdims=True) + eps)
    return y if weight is None else y * weight


def l2(x):
    return x / xp.sqrt(xp.sum(x * x, -1, keepdims=True) + 1e-6)


def l1(x):
    return x / xp.maximum(xp.sum(xp.abs(x), -1, keepdims=True), 1e-6)


def rotate(x, theta):
    t, _, d = x.shape
    angle = np.arange(t)[:, None] / theta ** (np.arange(0, d, 2)[None] / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return xp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def scan(step, state, inputs):
    if xp is not np:
        return jax.lax.scan(step, state, inputs)[1]
    outs = []
    for one in zip(*inputs):
        state, out = step(state, one)
        outs.append(out)
    return np.stack(outs)


def decay_rule(q, k, v, g):
    """S <- diag(e^g) S + k v^T; o = S^T q. q, k [T,H,K], v [T,H,V], g [T,H,K] or [T,H,1]."""

    def step(s, x):
        q, k, v, g = x
        s = s * xp.exp(g)[..., None] + k[..., None] * v[:, None]
        return s, xp.einsum("hk,hkv->hv", q, s)

    return scan(step, xp.zeros((q.shape[1], q.shape[2], v.shape[2])), (q, k, v, g))


def delta_rule(q, k, v, g, beta):
    """S <- diag(e^g) S; S += k (beta (v - S^T k))^T; o = S^T q."""

    def step(s, x):
        q, k, v, g, beta = x
        s = s * xp.exp(g)[..., None]
        s = s + k[..., None] * (beta[:, None] * (v - xp.einsum("hk,hkv->hv", k, s)))[:, None]
        return s, xp.einsum("hk,hkv->hv", q, s)

    return scan(step, xp.zeros((q.shape[1], q.shape[2], v.shape[2])), (q, k, v, g, beta))


class Net:
    """One model: configuration and weights; remembers which weights it has read."""

    def __init__(self, config, weights):
        self.c = {**COMMON, **DEFAULTS[config["model_type"]], **config}
        self.w, self.read = weights, set()

    def weight(self, name):
        self.read.add(name)
        return self.w[name]

    def linear(self, x, name, bias=False):
        y = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if bias else y

    def norm(self, x, name, eps=None):
        return rms(x, self.weight(f"{name}.weight"), eps or self.c["norm_eps"])

    def conv(self, x, name, act, bias=False):
        w = self.weight(f"{name}.weight")[:, 0]
        past = xp.concatenate([xp.zeros((w.shape[1] - 1, x.shape[1])), x])
        y = sum(past[j : j + len(x)] * w[:, j] for j in range(w.shape[1]))
        return act(y + self.weight(f"{name}.bias") if bias else y)

    def stream(self, x, at, name, heads, conv_act, plain_act):
        y = self.linear(x, f"{at}.{name}_proj")
        conv = self.c.get("use_short_conv")
        y = self.conv(y, f"{at}.{name}_conv1d", conv_act) if conv else plain_act(y)
        return y.reshape(len(x), heads, -1)

    def attention(self, x, at, heads, kv_heads, bias, window, theta, qk_norm=False):
        t, kv_heads = len(x), kv_heads or heads
        q = self.linear(x, f"{at}.q_proj", bias).reshape(t, heads, -1)
        k = self.linear(x, f"{at}.k_proj", bias).reshape(t, kv_heads, -1)
        v = self.linear(x, f"{at}.v_proj", bias).reshape(t, kv_heads, -1)
        if qk_norm:
            q, k = self.norm(q, f"{at}.q_norm", 1e-5), self.norm(k, f"{at}.k_norm", 1e-5)
        q, k = rotate(q, theta), rotate(k, theta)
        k, v = (xp.repeat(y, heads // kv_heads, 1) for y in (k, v))
        far = np.arange(t)[:, None] - np.arange(t)[None]
        seen = (far >= 0) & (far < (window or t))
        scores = xp.where(seen[None], xp.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1]), -np.inf)
        p = xp.exp(scores - xp.max(scores, -1, keepdims=True))
        o = xp.einsum("hij,jhd->ihd", p / xp.sum(p, -1, keepdims=True), v)
        return self.linear(o.reshape(t, -1), f"{at}.o_proj")

    def out(self, o, x, at, name, gate, act=silu, affine=True):
        """Norm of each head, gate, output projection. `gate` names the gate's projections."""
        o = rms(o, self.weight(f"{at}.{name}.weight") if affine else None, self.c["norm_eps"])
        if gate:
            g = x
            for part, bias in gate:
                g = self.linear(g, f"{at}.{part}", bias)
            o = o * act(g.reshape(o.shape))
        return self.linear(o.reshape(len(x), -1), f"{at}.o_proj")

    def gla(self, x, at):
        c, t = self.c, len(x)
        h, kv = c["num_heads"], c["num_kv_heads"] or c["num_heads"]
        same = lambda y: y
        q, k, v = (self.stream(x, at, n, m, silu, same) for n, m in (("q", h), ("k", kv), ("v", kv)))
        g = self.linear(self.linear(x, f"{at}.gk_proj.0"), f"{at}.gk_proj.1", True)
        g = -softplus(-g.reshape(t, kv, -1)) / 16
        if c["clamp_min"] is not None:
            g = xp.maximum(g, c["clamp_min"])
        if c["feature_map"]:
            q, k = PEER_ACTS[c["feature_map"]](q), PEER_ACTS[c["feature_map"]](k)
        k, v, g = (xp.repeat(y, h // kv, 1) for y in (k, v, g))
        o = decay_rule(q / math.sqrt(q.shape[-1]), k, v, g)
        gated = c["use_output_gate"]
        name = "g_norm_swish_gate" if gated and c["fuse_norm"] else "g_norm"
        return self.out(o, x, at, name, gated and [("g_proj", False)], affine=c["elementwise_affine"])

    def retnet(self, x, at):
        c, t = self.c, len(x)
        h, kv = c["num_heads"], c["num_kv_heads"] or c["num_heads"]
        # The peer's RetNet has no short convolutions, whatever use_short_conv says.
        q, k, v = (self.linear(x, f"{at}.{n}_proj").reshape(t, m, -1) for n, m in (("q", h), ("k", kv), ("v", kv)))
        if c["feature_map"]:
            q, k = HF_ACTS[c["feature_map"]](q), HF_ACTS[c["feature_map"]](k)
        q, k = rotate(q, 10000.0), rotate(k, 10000.0)
        k, v = (xp.repeat(y, h // kv, 1) for y in (k, v))
        g = np.log(1 - 2.0 ** (-5 - np.arange(h)))
        g = xp.asarray(np.broadcast_to(g[None, :, None], (t, h, 1)))
        o = decay_rule(q / math.sqrt(q.shape[-1]), k, v, g)
        gated = c["use_output_gate"]
        name = "g_norm_swish_gate" if gated and c["fuse_norm"] else "g_norm"
        return self.out(o, x, at, name, gated and [("g_proj", False)], affine=c["elementwise_affine"])

    def delta_net(self, x, at):
        c, h = self.c, self.c["num_heads"]
        acts = {"silu": silu, "identity": lambda y: y, "relu": relu, "elu": lambda y: xp.where(y > 0, y, xp.expm1(xp.minimum(y, 0.0))) + 1}
        act = acts[c["qk_activation"]]
        q, k = (self.stream(x, at, n, h, act, act) for n in "qk")
        v = self.stream(x, at, "v", h, silu, silu)
        q, k = (l2(q), l2(k)) if c["qk_norm"] == "l2" else (l1(q), l1(k))
        beta = sigmoid(self.linear(x, f"{at}.b_proj")) if c["use_beta"] else xp.ones((len(x), h))
        beta = beta * 2 if c["allow_neg_eigval"] else beta
        o = delta_rule(q / math.sqrt(q.shape[-1]), k, v, xp.zeros((len(x), h, 1)), beta)
        return self.out(o, x, at, "o_norm", c["use_gate"] and [("g_proj", False)])

    def gated_deltanet(self, x, at):
        c, h = self.c, self.c["num_heads"]
        hv = c["num_v_heads"] or h
        q, k, v = (self.stream(x, at, n, m, silu, silu) for n, m in (("q", h), ("k", h), ("v", hv)))
        q, k = (xp.repeat(l2(y), hv // h, 1) for y in (q, k))
        g = -xp.exp(self.weight(f"{at}.A_log")) * softplus(self.linear(x, f"{at}.a_proj") + self.weight(f"{at}.dt_bias"))
        beta = sigmoid(self.linear(x, f"{at}.b_proj")) * (2 if c["allow_neg_eigval"] else 1)
        o = delta_rule(q / math.sqrt(q.shape[-1]), k, v, g[..., None], beta)
        act = sigmoid if c["output_gate_activation"] == "sigmoid" else silu
        return self.out(o, x, at, "o_norm", c["use_gate"] and [("g_proj", False)], act)

    def kda(self, x, at):
        c, h = self.c, self.c["num_heads"]
        hv = c["num_v_heads"] or h
        q, k, v = (self.stream(x, at, n, m, silu, silu) for n, m in (("q", h), ("k", h), ("v", hv)))
        q, k = (xp.repeat(l2(y), hv // h, 1) for y in (q, k))
        f = self.linear(self.linear(x, f"{at}.f_proj.0"), f"{at}.f_proj.1") + self.weight(f"{at}.dt_bias")
        f, a = f.reshape(len(x), hv, -1), xp.exp(self.weight(f"{at}.A_log"))[None, :, None]
        g = -a * softplus(f) if c["lower_bound"] is None else c["lower_bound"] * sigmoid(a * f)
        beta = sigmoid(self.linear(x, f"{at}.b_proj")) * (2 if c["allow_neg_eigval"] else 1)
        o = delta_rule(q / math.sqrt(q.shape[-1]), k, v, g, beta)
        return self.out(o, x, at, "o_norm", [("g_proj.0", False), ("g_proj.1", True)], sigmoid)

    def mamba2(self, x, at):
        c, t = self.c, len(x)
        inner, n, groups = int(c["expand"] * c["hidden_size"]), c["state_size"], c["n_groups"]
        h = inner // c["head_dim"]
        zxd = self.linear(x, f"{at}.in_proj", c.get("use_bias", False))
        z, mixed, dt = zxd[:, :inner], zxd[:, inner:-h], zxd[:, -h:]
        act = PEER_ACTS[c["hidden_act"]]
        mixed = self.conv(mixed, f"{at}.conv1d", act, c.get("use_conv_bias", True))
        xs = mixed[:, :inner].reshape(t, h, -1)
        b, cc = (xp.repeat(y.reshape(t, groups, n), h // groups, 1) for y in (mixed[:, inner : inner + groups * n], mixed[:, inner + groups * n :]))
        dt = xp.clip(softplus(dt + self.weight(f"{at}.dt_bias")), *c["dt_limit"])
        y = decay_rule(cc, b, xs * dt[..., None], -(dt * xp.exp(self.weight(f"{at}.A_log")))[..., None])
        y = (y + xs * self.weight(f"{at}.D").reshape(h, -1)).reshape(t, inner)
        if not c["rmsnorm"]:
            y = y * silu(z)
        else:
            y = y if c["norm_before_gate"] else y * silu(z)
            y = rms(y.reshape(t, groups, -1), None, c["norm_eps"]).reshape(t, inner) * self.weight(f"{at}.norm.weight")
            y = y * silu(z) if c["norm_before_gate"] else y
        return self.linear(y, f"{at}.out_proj", c.get("use_bias", False))

    def transformer(self, x, at):
        c = self.c
        return self.attention(x, at, c["num_heads"], c["num_kv_heads"], c["qkv_bias"], c["window_size"], c["rope_theta"], c["qk_norm"])

    def block(self, x, i):
        c = self.c
        if c["model_type"] == "mamba2":
            at = f"backbone.layers.{i}"
            return x + self.mamba2(self.norm(x, f"{at}.norm"), f"{at}.mixer")
        at, specs = f"model.layers.{i}", c["attn"] or []
        spec = next((s for s in ([specs] if isinstance(specs, dict) else specs) if i in s["layers"]), None)
        y = self.norm(x, f"{at}.attn_norm")
        if spec:
            theta, bias = spec.get("rope_theta", 10000.0), spec.get("qkv_bias", False)
            x = x + self.attention(y, f"{at}.attn", spec["num_heads"], spec.get("num_kv_heads"), bias, spec.get("window_size"), theta)
        else:
            x = x + getattr(self, c["model_type"])(y, f"{at}.attn")
        y = self.norm(x, f"{at}.mlp_norm")
        y = silu(self.linear(y, f"{at}.mlp.gate_proj")) * self.linear(y, f"{at}.mlp.up_proj")
        return x + self.linear(y, f"{at}.mlp.down_proj")

    def logits(self, ids):
        root, last = ("backbone", "norm_f") if self.c["model_type"] == "mamba2" else ("model", "norm")
        table = self.weight(f"{root}.embeddings.weight")
        x, pad = table[np.asarray(ids)], self.c["pad_token_id"]
        if xp is not np and pad is not None and root == "model":
            # The row of the padding token learns nothing as an input (torch's padding_idx).
            x = xp.where((np.asarray(ids) == pad)[:, None], jax.lax.stop_gradient(x), x)
        for i in range(self.c["num_hidden_layers"]):
            x = self.block(x, i)
        x = self.norm(x, f"{root}.{last}")
        return x @ table.T if self.c["tie_word_embeddings"] else self.linear(x, "lm_head")

    def loss(self, ids):
        """Mean next-token cross entropy, and what the L2 warp adds to its gradient but not to its value."""
        y = self.logits(ids)
        top = xp.max(y, -1)
        lse = top + xp.log(xp.sum(xp.exp(y - top[:, None]), -1))
        ids = np.asarray(ids)
        loss = xp.mean(lse[:-1] - y[np.arange(len(ids) - 1), ids[1:]])
        if xp is not np and self.c["use_l2warp"]:
            warp = xp.sum(top * jax.lax.stop_gradient(top)) * 1e-4 / len(ids)
            loss = loss + warp - jax.lax.stop_gradient(warp)
        return loss


def fresh(name, shape, rng):
    """Random values that make every path matter."""
    leaf = name.rsplit(".", 1)[-1]
    noise = rng.standard_normal(shape)
    if leaf in ("A_log", "dt_bias", "D"):
        return 0.5 * noise + {"A_log": 0.0, "dt_bias": -1.0, "D": 0.5}[leaf]
    if "norm" in name.split(".")[-2]:
        return 1 + 0.3 * noise
    if leaf == "bias":
        return 0.3 * noise
    if "conv1d" in name:
        return noise * 0.6
    return noise * (1.0 if "embeddings" in name else 1.3 / math.sqrt(shape[-1]))


def gradients(config, weights, ids):
    global xp
    xp = jax.numpy
    try:
        return {n: np.asarray(g) for n, g in jax.jit(jax.grad(lambda w: Net(config, w).loss(ids)))(weights).items()}
    finally:
        xp = np


def make(config, shapes, folder, rng):
    """Writes the weights and what this file computes from them."""
    weights = {n: fresh(n, s, rng).astype(np.float32) for n, s in shapes.items()}
    net = Net(config, {n: w.astype(np.float64) for n, w in weights.items()})
    vocab = config["vocab_size"]
    short, long = rng.integers(0, vocab, (2, 48)), rng.integers(0, vocab, (1, 150))
    run = jax.jit(net.logits) if jax else net.logits
    both = np.stack([net.logits(row) for row in short])
    whole = net.logits(long[0])
    packed = np.concatenate([net.logits(long[0, a:b]) for a, b in zip(VARLEN, VARLEN[1:])])
    greedy = list(short[0, :20])
    while len(greedy) < 36:
        greedy.append(int(net.logits(greedy)[-1].argmax()))
    unread = set(shapes) - net.read
    assert not unread, f"flashlin has weights that the peer lacks: {unread}"
    tensors = {"input_ids": short, "input_ids_long": long, "greedy": np.array([greedy]), "logits": both, "logits_long": whole[None],
               "logits_varlen": packed[None]}
    kinds = {k: np.int64 if v.dtype.kind == "i" else np.float32 for k, v in tensors.items()}
    golden = {"loss": float(net.loss(long[0])), "peer_cannot": [], "case": folder.name, "peer": "second.py"}
    if jax:
        golden["grad_norm"] = {n: float(np.sqrt(np.sum(g * g))) for n, g in gradients(config, net.w, long[0]).items()}
    else:
        golden["peer_cannot"] = ["grad_norm"]
    keys = ["logits", "logits_long", "logits_varlen", "greedy", "loss", "grad_norm"]
    golden["precision"] = {k: "f32" for k in keys if k not in golden["peer_cannot"]}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({k: v.astype(kinds[k]) for k, v in tensors.items()}, folder / "golden.safetensors")
    (folder / "golden.json").write_text(json.dumps(golden))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("flashlin")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    failed = []
    wrong = set(args.names) - set(CASES)
    assert not wrong, f"no such cases: {wrong}"
    with tempfile.TemporaryDirectory() as temp:
        root = args.keep or Path(temp)
        for i, (name, keys) in enumerate(CASES.items()):
            if args.names and name not in args.names:
                continue
            family = name.split("-")[0]
            config = {"model_type": family, **BASE, **keys}
            if family == "mamba2":
                del config["intermediate_size"]
            folder = root / name
            sets = [f"--set={k}={json.dumps(v)}" for k, v in config.items() if k != "model_type"]
            new = [args.flashlin, "new", family, "--out", folder, *sets, "--quiet"]
            done = subprocess.run(new, capture_output=True, text=True)
            if done.returncode:
                failed.append(name)
                print(f"{name}: {done.stderr.strip()}")
                continue
            shapes = {n: t.shape for n, t in load_file(folder / "model.safetensors").items()}
            try:
                make(config, shapes, folder, np.random.default_rng(i))
            except (AssertionError, KeyError) as e:
                failed.append(name)
                print(f"{name}: {e!r}")
                continue
            done = subprocess.run([args.flashlin, "verify", folder, "--mode", "both", "--brief"], capture_output=True, text=True)
            print(f"{name}: {'pass' if done.returncode == 0 else 'FAILED'}")
            if done.returncode:
                failed.append(name)
                print(done.stdout[-2000:], done.stderr)
    sys.exit(f"failed: {failed}" if failed else 0)


if __name__ == "__main__":
    main()
