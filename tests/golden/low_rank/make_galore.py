"""Golden trajectories of galore_torch.AdamW (official), in float64: weights after steps 1 and 20.

    python make_galore.py > galore.txt

The official class does the update; only its decomposition is replaced, by one in float64 with
canonical signs: an SVD leaves signs open, and moments that outlive their basis depend on them.
"""
import warnings

import numpy as np
import torch

import common
from galore_torch import galore_projector
from galore_torch.adamw import AdamW

warnings.filterwarnings("ignore")


def orthogonal(self, weights, rank, type):
    u, s, vh = np.linalg.svd(weights.detach().double().numpy(), full_matrices=False)
    if type == "right":
        return torch.tensor(common.canonical(vh[:rank]))
    return torch.tensor(common.canonical(u[:, :rank].T).T)


galore_projector.GaLoreProjector.get_orthogonal_matrix = orthogonal

CASES = {  # rank, gap, scale, side, decay
    "std": (4, 7, 0.25, "std", 0.0),
    "decay": (4, 50, 1.0, "std", 0.1),
    "reverse_std": (3, 6, 0.5, "reverse_std", 0.01),
}
LR, BETAS, EPS = 1e-2, (0.9, 0.95), 1e-6
for name, (rank, gap, scale, side, decay) in CASES.items():
    params = [torch.nn.Parameter(torch.tensor(common.weight(i))) for i in range(5)]
    low = {"rank": rank, "update_proj_gap": gap, "scale": scale, "proj_type": side}
    opt = AdamW(
        [{"params": params[:3], "weight_decay": decay, **low},
         {"params": params[3:], "weight_decay": 0.0}],
        lr=LR, betas=BETAS, eps=EPS, no_deprecation_warning=True)
    for step in range(1, common.STEPS + 1):
        for i, p in enumerate(params):
            p.grad = torch.tensor(common.gradient(i, step))
        opt.step()
        if step in common.SHOWN:
            for i, p in enumerate(params):
                common.show(name, step, i, p.detach().numpy())
