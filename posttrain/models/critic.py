"""Actor and critic in one module, for PPO: what the policy said of each token, and what the critic makes of each state.

    separate   the critic is a network of its own, from the same start as the policy: it cannot spoil the policy
    shared     a value head on the policy's own backbone: half the memory, and the two losses pull at the same weights

Both heads start at 0. One module, so that DDP's hooks fire for both and one backward pass fills all gradients.
"""

from __future__ import annotations

from torch import Tensor, nn

from posttrain.tokens.batch import Batch
from posttrain.models import CompletionLogps
from posttrain.models.scalar import CompletionScores, per_token


class ActorCritic(nn.Module):
    """forward(batch, temperature) -> (logps [B, T], entropy [B, T], values [B, S]).

    values[:, t] is the value of the state after token t, which is the state before token t + 1: values[:, :-1] belongs to
    the predictions [B, T], and the value after a row's last token is what a truncated answer bootstraps from."""

    def __init__(self, policy: CompletionLogps, critic: CompletionScores | None):
        super().__init__()
        self.policy, self.critic = policy, critic
        self._no_split_modules = policy._no_split_modules
        if critic is None:
            weight = policy.model.get_input_embeddings().weight
            self.head = nn.Linear(policy.hidden_size, 1, bias=False, device=weight.device)
            nn.init.zeros_(self.head.weight)

    def forward(self, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        if self.critic is None:
            logps, entropy, hidden = self.policy.with_hidden(batch, temperature)
            return logps, entropy, per_token(self.head, hidden)
        logps, entropy = self.policy(batch, temperature)
        return logps, entropy, self.critic.values(batch)
