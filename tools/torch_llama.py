#!/usr/bin/env python3
"""A plain Llama in torch: the other side of speed comparisons, so it is written to be fast, and checked.

    torch_llama.py --check [--model DIR]         loss and every gradient against transformers (CPU, fp32)
    torch_llama.py --step [--method lora|full] [--shape NAME|CONFIG.json] [--layers N] [--tokens N,...]
                   [--seq-len N] [--micro-batch N,...] [--checkpointing auto|on|off] [--mode both|eager|compile]
                   [--device auto|cuda|cpu] [--seconds S] [--out FILE.jsonl] [--tiny]

--step prints one JSON line for each number of tokens a step: the best median step time over micro-batches and modes,
and every variant that was tried. A step is what a trainer does: micro-batches forward and backward, gradient norm and
clipping, AdamW. Nothing but torch is needed; --check needs transformers.

What it does to be fast: fused scaled_dot_product_attention with grouped queries, F.rms_norm, head and cross-entropy in
chunks whose gradients are made in the forward pass (no logits are kept or made twice), torch.compile of each layer,
fused AdamW. It needs torch 2.5. Types are those of Penstock: bf16 weights and activations; LoRA's A and B are fp32 and rounded for their
products, their gradients and moments fp32; full fine-tuning has fp32 masters beside the bf16 weights, fp32 moments.
"""
import argparse
import json
import math
import mmap
import os
import statistics
import struct
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES = {
    "llama-3-8b": dict(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                       num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.0),
    "tiny": dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, rms_norm_eps=1e-5, rope_theta=10000.0),
}


class Config:
    """The fields of a config.json that a Llama has; rope scaling is refused, not ignored."""

    def __init__(self, c):
        if c.get("rope_scaling") or (c.get("rope_parameters") or {}).get("rope_type", "default") != "default":
            raise SystemExit("torch_llama: rope scaling is not implemented")
        if c.get("attention_bias") or c.get("mlp_bias"):
            raise SystemExit("torch_llama: biases are not implemented")
        self.vocab, self.hidden, self.inter = c["vocab_size"], c["hidden_size"], c["intermediate_size"]
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or self.hidden // self.heads
        self.eps = c.get("rms_norm_eps", 1e-6)
        self.theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        self.tied = bool(c.get("tie_word_embeddings", False))


def rotary_tables(cfg, length, device):
    inv = cfg.theta ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim)
    inv = inv.float()
    angle = torch.arange(length, dtype=torch.float32)[:, None] * inv[None, :]
    angle = torch.cat((angle, angle), -1)
    return angle.cos().to(device), angle.sin().to(device)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def attention(q, k, v):
    """Causal; q (B, heads, T, d), k and v (B, kv heads, T, d)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    if groups > 1:  # the CPU's fused kernel wants as many heads everywhere
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Linear(nn.Module):
    """y = x W^T, with an adapter + scale (x A^T) B^T. Weights are frozen unless the method is full."""

    def __init__(self, rows, cols, dtype, device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, cols, dtype=dtype, device=device))
        self.lora_a = self.lora_b = None
        self.scale = 0.0

    def add_lora(self, rank, alpha):
        rows, cols = self.weight.shape
        device = self.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, cols, device=device).uniform_(-1, 1) / math.sqrt(cols))
        self.lora_b = nn.Parameter(torch.zeros(rows, rank, device=device))
        self.scale = alpha / rank

    def forward(self, x):
        y = F.linear(x, self.weight)
        if self.lora_a is not None:
            y = y + F.linear(F.linear(x, self.lora_a.to(x.dtype)), (self.scale * self.lora_b).to(x.dtype))
        return y


class Block(nn.Module):
    def __init__(self, cfg, dtype, device):
        super().__init__()
        h, q, kv = cfg.hidden, cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
        self.cfg = cfg
        shape = dict(q_proj=(q, h), k_proj=(kv, h), v_proj=(kv, h), o_proj=(h, q),
                     gate_proj=(cfg.inter, h), up_proj=(cfg.inter, h), down_proj=(h, cfg.inter))
        for name, (rows, cols) in shape.items():
            setattr(self, name, Linear(rows, cols, dtype, device))
        self.input_layernorm = nn.Parameter(torch.ones(h, dtype=dtype, device=device))
        self.post_attention_layernorm = nn.Parameter(torch.ones(h, dtype=dtype, device=device))

    def forward(self, x, cos, sin):
        c = self.cfg
        b, t, h = x.shape
        y = F.rms_norm(x, (h,), self.input_layernorm, c.eps)
        q = self.q_proj(y).view(b, t, c.heads, c.head_dim).transpose(1, 2)
        k = self.k_proj(y).view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.v_proj(y).view(b, t, c.kv_heads, c.head_dim).transpose(1, 2)
        a = attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        x = x + self.o_proj(a.transpose(1, 2).reshape(b, t, c.heads * c.head_dim))
        y = F.rms_norm(x, (h,), self.post_attention_layernorm, c.eps)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


def softmax_loss(logits, labels):
    """Sum of the losses of rows whose label is not negative, and its gradient, of the logits' type. Few passes."""
    keep, target = labels >= 0, labels.clamp(min=0)[:, None]
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)
    loss = -(log_p.gather(1, target)[:, 0] * keep).sum()
    grad = log_p.exp_().scatter_add_(1, target, log_p.new_full(target.shape, -1.0))
    return loss, grad.to(logits.dtype).mul_(keep[:, None])


def softmax_loss_fused(logits, labels):
    """The same, written to be compiled into one pass over what it makes."""
    keep, target = labels >= 0, labels.clamp(min=0)[:, None]
    logits32 = logits.float()
    log_p = logits32 - torch.logsumexp(logits32, -1, keepdim=True)
    loss = -(log_p.gather(1, target)[:, 0] * keep).sum()
    hit = torch.arange(logits.shape[1], device=logits.device)[None, :] == target
    return loss, ((log_p.exp() - hit.float()) * keep[:, None]).to(logits.dtype)


class HeadLoss(torch.autograd.Function):
    """Sum of the cross-entropy of x W^T over rows with a label, in chunks; both gradients are made at once."""

    @staticmethod
    def forward(ctx, x, weight, labels, chunk, train_head, softmax_loss):
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        dx = torch.empty_like(x)
        dw = torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if train_head else None
        for i in range(0, x.shape[0], chunk):
            loss, grad = softmax_loss(x[i:i + chunk] @ weight.t(), labels[i:i + chunk])
            total += loss
            torch.mm(grad, weight, out=dx[i:i + chunk])
            if train_head:
                dw += grad.t() @ x[i:i + chunk]
        ctx.save_for_backward(dx, dw)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, g):
        dx, dw = ctx.saved_tensors
        return dx * g.to(dx.dtype), (dw * g).to(ctx.weight_dtype) if dw is not None else None, None, None, None, None


class Llama(nn.Module):
    def __init__(self, cfg, dtype=torch.bfloat16, device="cpu", chunk=2048):
        super().__init__()
        self.cfg, self.chunk, self.recompute = cfg, chunk, False
        self.embed = nn.Parameter(torch.empty(cfg.vocab, cfg.hidden, dtype=dtype, device=device))
        self.layers = nn.ModuleList(Block(cfg, dtype, device) for _ in range(cfg.layers))
        self.norm = nn.Parameter(torch.ones(cfg.hidden, dtype=dtype, device=device))
        self.head = self.embed if cfg.tied else nn.Parameter(torch.empty_like(self.embed))
        self.run_block, self.softmax_loss = Block.forward, softmax_loss
        self.tables = None

    def randomise(self, std=0.02, seed=1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                if p.dim() > 1:
                    p.normal_(0, std)
        return self

    def train_lora(self, rank, alpha, targets=LINEARS):
        for p in self.parameters():
            p.requires_grad_(False)
        for block in self.layers:
            for name in targets:
                getattr(block, name).add_lora(rank, alpha)
        return self

    def forward(self, ids, labels):
        """Sum of the losses of the shifted labels (-100: none), and how many there are."""
        t = ids.shape[1]
        if self.tables is None or self.tables[0].shape[0] < t:
            self.tables = rotary_tables(self.cfg, t, ids.device)
        x = F.embedding(ids, self.embed)
        cos, sin = (table[:t].to(x.dtype) for table in self.tables)
        for block in self.layers:
            if self.recompute:
                x = checkpoint(self.run_block, block, x, cos, sin, use_reentrant=False)
            else:
                x = self.run_block(block, x, cos, sin)
        x = F.rms_norm(x, (self.cfg.hidden,), self.norm, self.cfg.eps).reshape(-1, self.cfg.hidden)
        y = F.pad(labels[:, 1:], (0, 1), value=-100).reshape(-1)  # rows stay as many as tokens: products like that
        total = HeadLoss.apply(x, self.head, y, self.chunk, self.head.requires_grad, self.softmax_loss)
        return total, (y >= 0).sum()


# --- Hugging Face directories ---

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def read_safetensors(path):
    """{name: tensor}; the tensors lie in the mapped file."""
    with open(path, "rb") as f:
        data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    (size,) = struct.unpack("<Q", data[:8])
    header, out = json.loads(data[8:8 + size]), {}
    for name, e in header.items():
        if name == "__metadata__":
            continue
        begin, end = e["data_offsets"]
        dtype = DTYPES[e["dtype"]]
        count = math.prod(e["shape"])
        if end - begin != count * torch.empty(0, dtype=dtype).element_size():
            raise SystemExit(f"{path}: {name}: {end - begin} bytes for shape {e['shape']}")
        flat = torch.frombuffer(data, dtype=dtype, count=count, offset=8 + size + begin)
        out[name] = flat.view(e["shape"])
    return out


def read_directory(path):
    index = os.path.join(path, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.exists(index):
        with open(index) as f:
            files = sorted(set(json.load(f)["weight_map"].values()))
    tensors = {}
    for name in files:
        tensors.update(read_safetensors(os.path.join(path, name)))
    return tensors


def hub_names(model):
    """{name in a checkpoint: parameter}"""
    names = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    if not model.cfg.tied:
        names["lm_head.weight"] = model.head
    for i, block in enumerate(model.layers):
        at = f"model.layers.{i}."
        names[at + "input_layernorm.weight"] = block.input_layernorm
        names[at + "post_attention_layernorm.weight"] = block.post_attention_layernorm
        for name in LINEARS:
            part = "self_attn." if name in LINEARS[:4] else "mlp."
            names[at + part + name + ".weight"] = getattr(block, name).weight
    return names


def load(model, tensors):
    with torch.no_grad():
        for name, p in hub_names(model).items():
            p.copy_(tensors[name])
    return model


def read_config(path):
    with open(os.path.join(path, "config.json") if os.path.isdir(path) else path) as f:
        return json.load(f)


# --- the check against transformers ---


def difference(got, want):
    """|got - want| over |want|, both norms; where want is all zeros got must be too."""
    got, want = got.detach().double(), want.detach().double()
    scale, off = float(want.norm()), float((got - want).norm())
    return off / scale if scale > 0 else off


class Check:
    def __init__(self, limit):
        self.limit, self.worst, self.failed, self.count = limit, 0.0, 0, 0

    def __call__(self, what, got, want):
        d = difference(got, want)
        self.count += 1
        self.worst = max(self.worst, d)
        if not d <= self.limit:
            self.failed += 1
            print(f"not ok - {what}: off by {d:.2e} of its norm")


def reference_gradients(hf, ids, labels):
    hf.zero_grad()
    loss = hf(input_ids=ids, labels=labels).loss
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in hf.named_parameters()}


def ours(model, ids, labels):
    model.zero_grad()
    total, count = model(ids, labels)
    (total / count).backward()
    return (total / count).detach()


def make_batch(cfg, rows, length):
    ids = torch.randint(0, cfg.vocab, (rows, length))
    labels = ids.clone()
    labels[0, : length // 3] = -100
    labels[-1, -2:] = -100
    return ids, labels


def check_full(hf, cfg, name, limit, recompute, chunk):
    check = Check(limit)
    model = load(Llama(cfg, torch.float32, chunk=chunk), dict(hf.named_parameters()))
    model.recompute = recompute
    if recompute:
        model.softmax_loss = softmax_loss_fused
    ids, labels = make_batch(cfg, 3, 37)
    want_loss, want = reference_gradients(hf, ids, labels)
    check("loss", ours(model, ids, labels), want_loss)
    for n, p in hub_names(model).items():
        check(n, p.grad, want[n])
    return report(check, f"{name}: loss and {check.count - 1} gradients of full fine-tuning")


def check_lora(hf, cfg, name, limit, recompute, chunk):
    """transformers runs with W + s B A in W's place, and has dL/dW = G there: dA = s B^T G, dB = s G A^T."""
    check = Check(limit)
    model = load(Llama(cfg, torch.float32, chunk=chunk), dict(hf.named_parameters())).train_lora(4, 8)
    model.recompute = recompute
    linears = {n: getattr(b, n.split(".")[-2]) for i, b in enumerate(model.layers)
               for n in hub_names(model) if n.startswith(f"model.layers.{i}.") and "_proj" in n}
    params = dict(hf.named_parameters())
    before = {n: p.detach().clone() for n, p in params.items()}
    with torch.no_grad():
        for n, linear in linears.items():
            linear.lora_b.normal_(0, 0.05)
            params[n] += linear.scale * linear.lora_b @ linear.lora_a
    ids, labels = make_batch(cfg, 2, 29)
    want_loss, want = reference_gradients(hf, ids, labels)
    check("loss", ours(model, ids, labels), want_loss)
    for n, linear in linears.items():
        g = want[n].double() * linear.scale
        check(n + " A", linear.lora_a.grad, linear.lora_b.double().t() @ g)
        check(n + " B", linear.lora_b.grad, g @ linear.lora_a.double().t())
    with torch.no_grad():
        for n, p in params.items():
            p.copy_(before[n])
    return report(check, f"{name}: loss and {check.count - 1} gradients of LoRA")


def report(check, what):
    print(f"{'not ok' if check.failed else 'ok'} - {what}, worst {check.worst:.1e} (limit {check.limit:.0e})")
    return check.failed


def run_check(args):
    try:
        from transformers import AutoModelForCausalLM, LlamaConfig
        import transformers
    except ImportError:
        print("skip - torch_llama against transformers: transformers is not installed")
        return 0
    transformers.utils.logging.disable_progress_bar()
    print(f"# torch {torch.__version__}, transformers {transformers.__version__}, CPU, fp32")
    torch.manual_seed(5)
    base = dict(SHAPES["tiny"], max_position_embeddings=128)
    cases = []
    for name, more in [("grouped heads", {}), ("one kv head, tied", dict(num_key_value_heads=1, tie_word_embeddings=True)),
                       ("head_dim 24", dict(head_dim=24, num_key_value_heads=4))]:
        hf = AutoModelForCausalLM.from_config(LlamaConfig(**{**base, **more}), dtype=torch.float32,
                                              attn_implementation="eager")
        with torch.no_grad():
            for p in hf.parameters():
                p.add_(torch.randn_like(p) * 0.05)
        cases.append((name, hf, Config({**base, **more})))
    if args.model:
        hf = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager")
        cfg = Config(read_config(args.model))
        check = Check(0.0)
        for n, t in hub_names(load(Llama(cfg, torch.float32), read_directory(args.model))).items():
            check(n, t.detach(), dict(hf.named_parameters())[n].detach())
        failed = report(check, f"{args.model}: weights as transformers reads them")
        if failed:
            return 1
        cases.append((os.path.basename(os.path.dirname(os.path.abspath(args.model))), hf, cfg))
    failed = 0
    for name, hf, cfg in cases:
        for recompute, chunk in ((False, 1000), (True, 7)):
            tag = name + (", recomputed, head in chunks of 7" if recompute else "")
            failed += check_full(hf, cfg, tag, args.limit, recompute, chunk)
            failed += check_lora(hf, cfg, tag, args.limit, recompute, chunk)
    return 1 if failed else 0


# --- time of a step ---


class Optimizer:
    """AdamW over fp32 tensors: the parameters themselves, or masters of bf16 parameters."""

    def __init__(self, params, lr=1e-4):
        self.params = params
        self.masters = [p if p.dtype == torch.float32 else p.detach().float().clone() for p in params]
        cuda = params[0].is_cuda
        self.adamw = torch.optim.AdamW(self.masters, lr=lr, weight_decay=0.0, **({"fused": True} if cuda else {}))

    def step(self):
        if self.masters[0] is not self.params[0]:
            for m, p in zip(self.masters, self.params):
                m.grad = p.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.adamw.step()
        if self.masters[0] is not self.params[0]:
            with torch.no_grad():
                torch._foreach_copy_(self.params, self.masters)
            for m in self.masters:
                m.grad = None
        for p in self.params:
            p.grad = None


def one_step(model, optimizer, ids, micro):
    count = ids.shape[0] * (ids.shape[1] - 1)
    for i in range(0, ids.shape[0], micro):
        total, _ = model(ids[i:i + micro], ids[i:i + micro])
        (total / count).backward()
    optimizer.step()


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_variant(args, cfg, device, tokens, micro, mode, recompute, deadline):
    """Median step seconds of one way to do it; None where memory or time does not suffice."""
    model = Llama(cfg, torch.bfloat16, device, chunk=args.chunk).randomise()
    if args.method == "lora":
        model.train_lora(args.rank, 2 * args.rank)
    model.recompute = recompute
    if mode == "compile":
        model.run_block = torch.compile(Block.forward, dynamic=False)
        model.softmax_loss = torch.compile(softmax_loss_fused, dynamic=False)
    optimizer = Optimizer([p for p in model.parameters() if p.requires_grad])
    ids = torch.randint(0, cfg.vocab, (tokens // args.seq_len, args.seq_len), device=device)
    seconds = []
    for step in range(2 + args.steps):
        sync(device)
        start = time.perf_counter()
        one_step(model, optimizer, ids, micro)
        sync(device)
        took = time.perf_counter() - start
        if step >= 2:
            seconds.append(took)
        if time.perf_counter() + took > deadline and seconds:
            break
    return statistics.median(seconds)


def variants(args, tokens):
    """Likely best first, so that a time limit costs little."""
    rows = tokens // args.seq_len
    micros = [m for m in args.micro_batch if m <= rows and rows % m == 0] or [1]
    modes = ["compile", "eager"] if args.mode == "both" else [args.mode]
    recompute = [False, True] if args.checkpointing == "auto" else [args.checkpointing == "on"]
    for r in recompute:
        for mode in modes:
            for micro in micros:
                yield micro, mode, r


def run_step(args):
    started = time.perf_counter()
    device = torch.device(args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    shape = SHAPES[args.shape] if args.shape in SHAPES else read_config(args.shape)
    cfg = Config({**shape, **({"num_hidden_layers": args.layers} if args.layers else {})})
    out = open(args.out, "a") if args.out else None
    status = 0
    for i, tokens in enumerate(args.tokens):
        left = args.seconds - (time.perf_counter() - started)
        deadline = time.perf_counter() + left / (len(args.tokens) - i)
        tried, kept = [], False
        for micro, mode, recompute in variants(args, tokens):
            if recompute and kept and args.checkpointing == "auto":
                continue  # what fits without recomputation is faster without
            if tried and time.perf_counter() > deadline:
                break
            entry = dict(micro_batch=micro, mode=mode, recompute=recompute, step_s=None)
            try:
                entry["step_s"] = time_variant(args, cfg, device, tokens, micro, mode, recompute, deadline)
                kept |= not recompute
            except torch.cuda.OutOfMemoryError:
                entry["why"] = "out of memory"
            except Exception as e:  # a compiler that does not work leaves eager
                if mode != "compile":
                    raise
                entry["why"] = f"{type(e).__name__}: {str(e)[:200]}"
            tried.append(entry)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                entry["peak_bytes"] = torch.cuda.max_memory_allocated()
                torch.cuda.reset_peak_memory_stats()
        best = min((t for t in tried if t["step_s"]), key=lambda t: t["step_s"], default=None)
        status |= best is None
        line = json.dumps(dict(part="torch step", method=args.method, shape=args.shape, layers=cfg.layers,
                               tokens=tokens, seq_len=args.seq_len,
                               tokens_per_s=tokens / best["step_s"] if best else None, best=best, tried=tried,
                               torch=torch.__version__, device=torch.cuda.get_device_name() if device.type == "cuda"
                               else "cpu"))
        print(line, flush=True)
        if out:
            out.write(line + "\n")
            out.flush()
    return status


def numbers(text):
    return [int(x) for x in text.split(",")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true")
    p.add_argument("--limit", type=float, default=1e-5, help="of --check: distance over norm")
    p.add_argument("--model", help="of --check: a Hugging Face directory besides the random ones")
    p.add_argument("--step", action="store_true")
    p.add_argument("--method", choices=["lora", "full"], default="lora")
    p.add_argument("--shape", default="llama-3-8b", help="a name or a config.json")
    p.add_argument("--layers", type=int, default=0)
    p.add_argument("--tokens", type=numbers, default=[16384])
    p.add_argument("--seq-len", type=int, default=4096)
    p.add_argument("--micro-batch", type=numbers, default=[1, 4])
    p.add_argument("--checkpointing", choices=["auto", "on", "off"], default="auto")
    p.add_argument("--mode", choices=["both", "eager", "compile"], default="both")
    p.add_argument("--device", default="auto")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--chunk", type=int, default=2048, help="tokens of a chunk of the head")
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--seconds", type=float, default=120)
    p.add_argument("--out")
    p.add_argument("--tiny", action="store_true", help="a dry run in seconds")
    args = p.parse_args()
    if args.tiny:
        args.shape, args.tokens, args.seq_len, args.chunk, args.steps = "tiny", [64], 32, 16, 1
        args.mode = "eager" if args.mode == "both" else args.mode
        args.micro_batch, args.rank = [1, 2], 4
    if args.check == args.step:
        p.error("one of --check and --step")
    return run_check(args) if args.check else run_step(args)


if __name__ == "__main__":
    sys.exit(main())
