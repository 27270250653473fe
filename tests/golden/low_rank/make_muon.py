"""Golden trajectories of Muon: torch.optim.Muon (bf16 iteration) and the equations in float64.

    python make_muon.py > muon.txt

Cases `torch` and `torch_rms` are torch.optim.Muon with torch.optim.AdamW for the vectors (rates and
betas of the authors' repository); `double` is the same without bf16, from arXiv:2502.16982 and Jordan
2024. Weights after steps 1 and 20.
"""
import numpy as np
import torch

import common

LR, DECAY, MOMENTUM, AUX = 2e-2, 0.1, 0.95, 0.015


def show_all(name, step, params):
    for i, p in enumerate(params):
        common.show(name, step, i, p)


for name, adjust in (("torch", None), ("torch_rms", "match_rms_adamw")):
    params = [torch.nn.Parameter(torch.tensor(common.weight(i)).float()) for i in range(5)]
    muon = torch.optim.Muon(params[:3], lr=LR, weight_decay=DECAY, momentum=MOMENTUM, adjust_lr_fn=adjust)
    aux = torch.optim.AdamW(params[3:], lr=LR * AUX, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    for step in range(1, common.STEPS + 1):
        for i, p in enumerate(params):
            p.grad = torch.tensor(common.gradient(i, step)).float()
        muon.step()
        aux.step()
        if step in common.SHOWN:
            show_all(name, step, [p.detach().double().numpy() for p in params])


def newton_schulz(d, steps=5):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = d.T if d.shape[0] > d.shape[1] else d
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        g = x @ x.T
        x = a * x + (b * g + c * g @ g) @ x
    return x.T if d.shape[0] > d.shape[1] else x


params = [common.weight(i) for i in range(5)]
m = [np.zeros_like(p) for p in params]
v = [np.zeros_like(p) for p in params]
for t in range(1, common.STEPS + 1):
    for i, shape in enumerate(common.SHAPES):
        g = common.gradient(i, t)
        if len(shape) == 2:
            m[i] = MOMENTUM * m[i] + (1 - MOMENTUM) * g
            x = newton_schulz((1 - MOMENTUM) * g + MOMENTUM * m[i])
            params[i] = params[i] - LR * DECAY * params[i]
            params[i] = params[i] - LR * np.sqrt(max(1, shape[0] / shape[1])) * x
        else:
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.95 * v[i] + 0.05 * g * g
            u = (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.95**t)) + 1e-10)
            params[i] = params[i] - LR * AUX * u
    if t in common.SHOWN:
        show_all("double", t, params)
