"""Golden values of torch.optim.AdamW: a few elements, ten steps, several settings.

    python make_adamw.py > adamw.txt

Computed in float64, so that the file holds the formula rather than torch's roundings. Each case:
"case lr beta1 beta2 eps decay n steps", then a line of n initial weights, then for each step a line
of n gradients and a line of n weights after it. All numbers but counts are C hexadecimal floats;
initial weights and gradients are exact in fp32.
"""
import torch

CASES = [
    (1e-3, 0.9, 0.999, 1e-8, 0.0),
    (1e-3, 0.9, 0.999, 1e-8, 0.1),
    (2e-4, 0.9, 0.95, 1e-6, 0.01),
    (1e-2, 0.0, 0.99, 1e-3, 0.5),
]
N, STEPS = 6, 10


def line(t):
    print(" ".join(float(x).hex() for x in t))


torch.manual_seed(20240601)
for lr, b1, b2, eps, wd in CASES:
    print("case", *(float(x).hex() for x in (lr, b1, b2, eps, wd)), N, STEPS)
    scale = torch.tensor([1.0, 1e-3, 1e-7, 30.0, 0.0, 1.0])
    p = torch.nn.Parameter(torch.randn(N).double())
    line(p.detach())
    opt = torch.optim.AdamW([p], lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd, foreach=False)
    for _ in range(STEPS):
        g = torch.randn(N) * scale
        p.grad = g.double()
        line(p.grad)
        opt.step()
        line(p.detach())
