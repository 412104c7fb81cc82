"""Muon for the matrices, AdamW for the rest."""
import torch


def orthogonalize(g, steps=5):
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix; g: [..., m, n], batched."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "m" not in state:
                    state["m"] = torch.zeros_like(p)
                m = state["m"]
                m.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(m, group["momentum"]))
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)


def optimizers(model):
    adam_matrices = [model.embed.weight, model.head.weight] + [m.gate.weight for m in model.moe_layers()]
    known = {id(p) for p in adam_matrices}
    matrices = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in known]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    muon = Muon(matrices, lr=0.02)
    adam = torch.optim.AdamW([dict(params=adam_matrices, lr=4e-3), dict(params=vectors, lr=2e-3)],
                             betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [muon, adam]
