"""The network and how it is trained: the file of this template that may be changed.

For each table `experiment.py` makes a `Learner`, calls `update` a fixed number of times with all equations that are
shown, and at the end asks `predict` for the answers to the others. torch's generator carries the run's seed.
`evaluate.py` then compares the answers with the right ones; nothing else that happens here counts.
"""

import torch
from torch import nn


class Transformer(nn.Module):
    """Reads the three symbols `left`, `right`, `=` and gives a score to each possible answer at the last of them.

    Source: Vaswani et al. (2017), Attention Is All You Need, in the order of norm and sum of Xiong et al. (2020), On
    Layer Normalization in the Transformer Architecture; as used for this task by Power et al. (2022).
    """

    def __init__(self, symbols: int, width: int, params: dict) -> None:
        super().__init__()
        self.symbols = symbols
        self.meaning = nn.Embedding(symbols + 1, width)  # the last is the sign `=`
        self.place = nn.Parameter(torch.zeros(3, width))
        self.blocks = nn.ModuleList(
            Block(width, params["dropout"]) for _ in range(params["layers"])
        )
        self.norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, symbols, bias=False)
        for weights in (self.meaning.weight, self.place, self.answer.weight):
            nn.init.normal_(weights, std=params["initial_scale"] / width**0.5)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """Give scores, shape (n, symbols), for pairs of shape (n, 2)."""
        sign = torch.full_like(pairs[:, :1], self.symbols)
        state = self.meaning(torch.cat([pairs, sign], dim=1)) + self.place
        for block in self.blocks:
            state = block(state)
        return self.answer(self.norm(state[:, -1]))


class Block(nn.Module):
    """Attention over all places, then a layer for each place."""

    def __init__(self, width: int, dropout: float, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        many, places, width = state.shape
        parts = self.project(self.norm1(state)).view(many, places, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value)
        seen = seen.transpose(1, 2).reshape(many, places, width)
        state = state + self.dropout(self.merge(seen))
        return state + self.dropout(self.wide(self.norm2(state)))


class Learner:
    """A transformer trained with AdamW, whose step size rises linearly at first and stays then."""

    def __init__(self, params: dict, width: int, symbols: int, device: torch.device) -> None:
        self.model = Transformer(symbols, width, params).to(device)
        self.share = params["batch_share"]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=params["learning_rate"],
            betas=(0.9, 0.98),
            weight_decay=params["weight_decay"],
        )
        rise = params["warmup_updates"]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda done: min(1.0, (done + 1) / rise)
        )

    def update(self, pairs: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """Make one step with a random part of the equations; give its loss."""
        if self.share < 1:
            chosen = torch.randperm(len(pairs), device=pairs.device)
            chosen = chosen[: max(1, round(self.share * len(pairs)))]
            pairs, answers = pairs[chosen], answers[chosen]
        self.model.train()
        loss = nn.functional.cross_entropy(self.model(pairs), answers)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, pairs: torch.Tensor) -> torch.Tensor:
        """Give the symbol that each pair makes, shape (n,)."""
        self.model.eval()
        return self.model(pairs).argmax(dim=1)
