"""The language model and how it is trained: the file of this template that may be changed.

`experiment.py` makes a `Learner`, calls `update` a fixed number of times with the whole text and the share of the
training that is over, and at the end asks `predict` for the next character after each of some contexts. torch's
generator carries the run's seed. `evaluate.py` then compares that with the true shares; nothing else that happens
here counts.
"""

import math

import torch
from torch import nn


class Transformer(nn.Module):
    """A decoder that predicts each next character from those before.

    Source: Vaswani et al. (2017), Attention Is All You Need; norms before the blocks, learned places and GELU as in
    Radford et al. (2019), Language Models are Unsupervised Multitask Learners, section 2.3.
    """

    def __init__(self, characters: int, size: dict, dropout: float) -> None:
        super().__init__()
        width = size["width"]
        self.meaning = nn.Embedding(characters, width)
        self.place = nn.Embedding(size["context"], width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(size["layers"]))
        self.norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, characters, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Give scores, shape (n, length, characters), for texts of shape (n, length)."""
        places = torch.arange(text.shape[1], device=text.device)
        state = self.dropout(self.meaning(text) + self.place(places))
        for block in self.blocks:
            state = block(state)
        return self.answer(self.norm(state))


class Block(nn.Module):
    """Attention over the places before, then a layer for each place."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        many, places, width = state.shape
        parts = self.project(self.norm1(state)).view(many, places, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen = seen.transpose(1, 2).reshape(many, places, width)
        state = state + self.dropout(self.merge(seen))
        return state + self.dropout(self.wide(self.norm2(state)))


class Learner:
    """A transformer trained with AdamW; the step size rises linearly and then falls as a cosine."""

    def __init__(self, params: dict, size: dict, characters: int, device: torch.device) -> None:
        self.params, self.context = params, size["context"]
        self.model = Transformer(characters, size, params["dropout"]).to(device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=params["learning_rate"],
            betas=(0.9, params["beta2"]),
            weight_decay=params["weight_decay"],
        )

    def update(self, text: torch.Tensor, share_done: float) -> torch.Tensor:
        """Make one step with random pieces of the text; give its loss in nats a character."""
        starts = torch.randint(
            len(text) - self.context, (self.params["batch_size"], 1), device=text.device
        )
        pieces = text[starts + torch.arange(self.context + 1, device=text.device)]
        for group in self.optimizer.param_groups:
            group["lr"] = self.params["learning_rate"] * self._rate(share_done)
        self.model.train()
        scores = self.model(pieces[:, :-1])
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), pieces[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def _rate(self, share_done: float) -> float:
        rise = self.params["warmup_share"]
        if share_done < rise:
            return (share_done + 0.001) / (rise + 0.001)
        return 0.05 + 0.95 * (1 + math.cos(math.pi * (share_done - rise) / (1 - rise))) / 2

    @torch.no_grad()
    def predict(self, contexts: torch.Tensor) -> torch.Tensor:
        """Give the share of each character as the next, shape (n, characters), after contexts (n, length)."""
        self.model.eval()
        return self.model(contexts)[:, -1].softmax(dim=1)
