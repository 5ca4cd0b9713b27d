"""BERTScore (Zhang et al. 2020, eq. 1-3): each token of one text is matched with the most similar one of the other.

    recall = mean over the reference's tokens of max over the answer's of cos(h, h'); precision the other way round; F
    their harmonic mean

Written out, as it is short: without weights by rarity (idf) and without a baseline that is subtracted, so two texts of
nothing in common have far more than 0. Special tokens are read, and neither match nor count. Figures of another
encoder, or of another layer, are figures of something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from posttrain.errors import UserError, reason


class Encoder:
    """A folder with an encoder and its tokenizer."""

    def __init__(self, folder: str, layer: int | None, key: str):
        from transformers import AutoModel, AutoTokenizer

        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"{key} '{folder}': no such folder")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path)
            self.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        except Exception as problem:  # whatever the library says of a folder that is broken or of another kind
            raise UserError(f"{key} '{folder}': cannot be loaded as an encoder: {reason(problem)}") from None
        layers = self.model.config.num_hidden_layers
        if layer is not None and layer > layers:
            raise UserError(f"{key} '{folder}' has {layers} layers, asked for is layer {layer}")
        self.layer = layer or layers
        self.longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        self.about = f"layer {self.layer} of {path.name}, no idf, not rescaled"

    @torch.no_grad()
    def states(self, texts: Sequence[str], batch_size: int) -> list[Tensor]:
        """Of each text [tokens, H], without special tokens; what is longer than the encoder reads is cut."""
        found = []
        for start in range(0, len(texts), batch_size):
            read = self.tokenizer(
                list(texts[start : start + batch_size]), padding=True, truncation=True, max_length=self.longest,
                return_tensors="pt", return_special_tokens_mask=True,
            )  # fmt: skip
            special = read.pop("special_tokens_mask").bool()
            own = read["attention_mask"].bool() & ~special
            read = read.to(self.model.device)
            hidden = self.model(**read, output_hidden_states=True).hidden_states[self.layer]
            found += [of_one[mask.to(of_one.device)] for of_one, mask in zip(hidden, own, strict=True)]
        return found

    def f1(
        self, answers: Sequence[str], references: Sequence[str], *, device: torch.device, batch_size: int
    ) -> list[float]:
        self.model.to(device)
        both = self.states(answers, batch_size), self.states(references, batch_size)
        return [f1(answer, reference) for answer, reference in zip(*both, strict=True)]


def f1(answer: Tensor, reference: Tensor) -> float:
    """[n, H], [m, H] -> F; 0 where one side has no token.

    Answer (1, 0), reference (1, 0) and (0, 2): precision 1, recall (1 + 0)/2 = 0.5, F = 2 · 0.5 / 1.5 = 2/3
    >>> round(f1(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])), 6)
    0.666667
    """
    if not len(answer) or not len(reference):
        return 0.0
    a, b = (torch.nn.functional.normalize(side.double(), dim=-1) for side in (answer, reference))
    cosine = a @ b.T  # [n, m]
    precision, recall = cosine.amax(1).mean().item(), cosine.amax(0).mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
