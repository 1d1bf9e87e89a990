"""The diffusion model and how it is trained: the file of this template that may be changed.

For each shape `experiment.py` makes a `Diffusion`, calls `update` a fixed number of times with all points to learn
from and the share of the training that is over, and at the end asks `sample` for new points. torch's generator
carries the run's seed. `evaluate.py` then compares the points with others of the same shape; nothing else that
happens here counts.

Source: Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, https://arxiv.org/abs/2006.11239.
"""

import copy
import math

import torch
from torch import nn


class Denoiser(nn.Module):
    """Tells from a noisy point, and from how noisy it is, the noise that was added."""

    def __init__(self, width: int, frequencies: int, layers: int) -> None:
        super().__init__()
        # Sines and cosines of the coordinates let a network this small draw sharp edges: Tancik et al. (2020),
        # Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains.
        self.register_buffer("scales", math.pi / 4 * 2.0 ** torch.arange(frequencies))
        self.first = nn.Linear(3 + 6 * frequencies, width)
        self.rest = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last = nn.Linear(width, 2)

    def forward(self, points: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Give the noise, shape (n, 2), for points (n, 2) and times (n,) from 0, clean, to 1, noise only."""
        inputs = torch.cat([points, 2 * time[:, None] - 1], dim=1)
        waves = (inputs[:, :, None] * self.scales).flatten(1)
        state = self.first(torch.cat([inputs, waves.sin(), waves.cos()], dim=1))
        for layer in self.rest:
            state = state + nn.functional.silu(layer(nn.functional.silu(state)))
        return self.last(state)


class Diffusion:
    """Equations of Ho et al. (2020), with the noise growing linearly or as a cosine (Nichol and Dhariwal, 2021)."""

    def __init__(self, params: dict, width: int, noise_steps: int, device: torch.device) -> None:
        self.params, self.device = params, device
        self.model = Denoiser(width, params["frequencies"], params["layers"]).to(device)
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=params["learning_rate"], weight_decay=0.0
        )
        self.updates = 0
        self.betas = schedule(params["noise_schedule"], noise_steps).to(device)
        self.kept = torch.cumprod(1 - self.betas, dim=0)

    def update(self, points: torch.Tensor, share_done: float) -> torch.Tensor:
        """Make one step of algorithm 1 with some of the points; give its loss."""
        size = self.params["batch_size"]
        clean = points[torch.randint(len(points), (size,), device=self.device)]
        steps = torch.randint(len(self.betas), (size,), device=self.device)
        noise = torch.randn_like(clean)
        kept = self.kept[steps, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        for group in self.optimizer.param_groups:
            group["lr"] = self.params["learning_rate"] * (1 + math.cos(math.pi * share_done)) / 2
        loss = nn.functional.mse_loss(self.model(noisy, steps / len(self.betas)), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._follow()
        return loss.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the averaged weights towards those of now; quickly at first, while these are far from good."""
        self.updates += 1
        share = max(1 - self.params["average_decay"], 1 / self.updates)
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        for average, now in pairs:
            average.lerp_(now, share)

    @torch.no_grad()
    def sample(self, number: int) -> torch.Tensor:
        """Draw points by algorithm 2, shape (number, 2)."""
        points = torch.randn(number, 2, device=self.device)
        for step in reversed(range(len(self.betas))):
            time = torch.full((number,), step / len(self.betas), device=self.device)
            beta, kept = self.betas[step], self.kept[step]
            points = points - beta / (1 - kept).sqrt() * self.average(points, time)
            points = points / (1 - beta).sqrt()
            if step:
                points = points + beta.sqrt() * torch.randn_like(points)
        return points


def schedule(name: str, steps: int) -> torch.Tensor:
    """Give the share of noise that each step adds, shape (steps,), each below 1."""
    if name == "linear":
        # Ho et al. use 1e-4 to 0.02 for a thousand steps; fewer steps have to add as much in all.
        return torch.linspace(1e-4, 0.02, steps).mul(1000 / steps).clamp(max=0.5)
    times = torch.linspace(0, 1, steps + 1)
    kept = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - kept[1:] / kept[:-1]).clamp(1e-4, 0.5)
