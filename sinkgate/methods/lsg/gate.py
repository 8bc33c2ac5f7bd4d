"""One learned gate, from a hidden state to a scale for each group of visual tokens (paper, section 4).

Shapes: B samples, D LLM width, G groups.
"""

from __future__ import annotations

from torch import Tensor, nn

from sinkgate.methods.lsg.config import ACTIVATIONS, LSGConfig


class SinkGate(nn.Module):
    """LayerNorm, D -> bottleneck -> G, softmax; biases and weights of the LayerNorm only where the configuration has them.

    The last layer begins at zero: every signal gives equal scales at first.
    """

    def __init__(self, config: LSGConfig) -> None:
        super().__init__()
        self.total = config.total
        self.norm = nn.LayerNorm(config.hidden_size, elementwise_affine=config.norm_weights)
        self.down = nn.Linear(config.hidden_size, config.bottleneck, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]()
        self.up = nn.Linear(config.bottleneck, len(config.groups), bias=config.bias)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, signal: Tensor) -> Tensor:
        """Return scales that sum to 1, or to G from the identity start, in the gate's own dtype, float32: (B, D) -> (B, G)."""
        signal = signal.to(self.down.weight)
        return self.total * self.up(self.activation(self.down(self.norm(signal)))).softmax(-1)
