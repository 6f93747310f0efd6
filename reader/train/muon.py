# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose steps are made orthogonal, for matrices (Keller Jordan's description)."""
import torch


def orthogonal(g, steps=5):
    """About U V^T of each matrix of a stack, by Newton and Schulz."""
    tall = g.shape[-2] > g.shape[-1]
    x = g.transpose(-1, -2) if tall else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(-1, -2) if tall else x


class Muon:
    def __init__(self, parameters, lr, momentum=0.95):
        self.groups, self.lr, self.momentum = {}, lr, momentum
        for p in parameters:  # those of one shape go together
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.buffers = {shape: torch.zeros((len(ps),) + shape, device=ps[0].device) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self):
        for shape, ps in self.groups.items():
            g, buffer = torch.stack([p.grad for p in ps]), self.buffers[shape]
            buffer.lerp_(g, 1 - self.momentum)
            update = orthogonal(g.lerp(buffer, self.momentum)) * max(1.0, shape[0] / shape[1]) ** 0.5
            for p, u in zip(ps, update):
                p.add_(u, alpha=-self.lr)

    def zero_grad(self):
        for ps in self.groups.values():
            for p in ps:
                p.grad = None

    def state_dict(self):
        return self.buffers

    def load_state_dict(self, state):
        for shape in self.buffers:
            self.buffers[shape].copy_(state[shape])
