"""What a trained network computes from a laid-out micro-batch: token log-probabilities, or scalars."""

from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, arange, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_ray.models.last_layer import LastLayer
from rlhf_ray.models.logit_transform import LogitTransform, measure_transform
from rlhf_ray.models.logprobs import chunked_logprobs
from rlhf_ray.models.ragged_attention import RaggedRows, arguments, prepare

ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "electra",
        "modernbert",
        "roberta",
        "xlm-roberta",
    }
)
"""Model types whose classifier reads the attention mask and nothing else to tell padding from text."""
READ_SHARE = 0.9
"""Share of tokens up to which it pays to compute the last layer only where it is read."""


def is_encoder(config: Any) -> bool:
    """Tell whether the network of a Transformers configuration is an encoder that is supported here."""
    return config.model_type in ENCODERS


def attention_mask(input_ids: Int[Tensor, "rows length"], last: Int[Tensor, " rows"]) -> Int[Tensor, "rows length"]:
    """Return 1 for each row's tokens up to its last one, 0 for the padding behind it.

    Args:
        input_ids: padded on the right.
        last: place of each row's last token in the flattened input.
    """
    rows, length = input_ids.shape
    ends = last - arange(rows, device=last.device) * length
    return (arange(length, device=last.device)[None] <= ends[:, None]).long()


def set_mode(network: nn.Module, training: bool) -> None:
    """Put a Hugging Face network into evaluation mode, but what must know that it trains.

    Sampling knows no dropout and no noise of routers; with them, the ratio of new to old policy would not start at 1.
    Under which names architectures keep their shares differs, but all of it hangs on the mode of a module.

    That is the dropout of an adapter, which a user asked for, and layers whose activations are recomputed; what these
    layers compute is in evaluation mode all the same.
    """
    network.eval()
    if not training:
        return
    for name, module in network.named_modules():
        if ".lora_dropout." in name:
            module.train()
        elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            # They ask for their mode when they are called, outside of `forward`.
            module.training = True
            if not isinstance(vars(module).get("forward"), _InEvaluation):
                module.forward = _InEvaluation(module)


class _InEvaluation:
    """The forward pass of a module that trains, in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._forward = module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, self._module.training = self._module.training, False
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._module.training = before


class LogprobHead(nn.Module):
    """Takes the place of a language model's output layer and owns its weight.

    Being a module whose forward uses the weight, it works where weights are gathered by module hooks (ZeRO-3), also
    when the weight is tied to the embedding.
    """

    def __init__(self, output: nn.Linear, transform: LogitTransform) -> None:
        """Replace the `output` layer; `transform` is what the network makes of the numbers that it returns."""
        super().__init__()
        self.transform = transform
        self.weight = output.weight
        self.bias: nn.Parameter | None = output.bias

    def forward(
        self,
        hidden: Float[Tensor, "... width"],
        targets: Int[Tensor, " tokens"] | None = None,
        temperature: float = 1.0,
        need_entropy: bool = False,
    ) -> Any:
        """Return numbers of all tokens as the replaced layer does; with targets, log-probabilities and entropy."""
        if targets is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        return chunked_logprobs(
            hidden,
            self.weight,
            targets,
            temperature,
            need_entropy=need_entropy,
            bias=self.bias,
            transform=self.transform,
        )


class _Trained(nn.Module):
    """A network of a role, which computes the same in training as in inference."""

    network: Any

    def train(self, mode: bool = True) -> Self:
        """Set the mode, see `set_mode`."""
        super().train(mode)
        set_mode(self.network, mode)
        return self


class PolicyNetwork(_Trained):
    """A causal language model that answers with log-probabilities of given response tokens."""

    def __init__(self, network: Any) -> None:
        """Replace the output layer of a Hugging Face causal language model by a `LogprobHead`.

        Raises:
            UnknownTransform: its logits are not known from what its output layer reads.
        """
        super().__init__()
        self.network = network
        transform = measure_transform(network)
        network.set_output_embeddings(LogprobHead(network.get_output_embeddings(), transform))
        self.takes_ragged_rows = prepare(network)
        self._last_layer = LastLayer(network)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        position_ids: Int[Tensor, "rows length"] | None = None,
        positions: Int[Tensor, " tokens"] | None = None,
        targets: Int[Tensor, " tokens"] | None = None,
        without_context: Bool[Tensor, " tokens"] | None = None,
        temperature: float = 1.0,
        need_entropy: bool = False,
        ragged: RaggedRows | None = None,
    ) -> dict[str, Float[Tensor, "..."]]:
        """Return log-probabilities (and entropy) of the targets, which follow the flattened `positions`.

        A target `without_context` (first token of a row that has no prompt) gets log-probability and entropy 0.
        Without targets it answers with the network's own logits of all tokens.
        """
        if positions is None or targets is None:
            return {"logits": self.network(input_ids=input_ids, use_cache=False).logits}
        # Where a first token is scored without context, its place stands twice among the positions; and that before
        # the answers to a shared prompt as often as it has answers.
        read = positions if without_context is None and ragged is None else positions.unique()
        with self._last_layer.reading(read if len(read) <= READ_SHARE * input_ids.numel() else None):
            hidden = _hidden_states(self.network, input_ids, position_ids, positions, ragged)
        logprobs, entropy = self.network.get_output_embeddings()(hidden, targets, temperature, need_entropy)
        outputs = {"logprobs": logprobs} if entropy is None else {"logprobs": logprobs, "entropy": entropy}
        if without_context is None:
            return outputs
        return {name: torch.where(without_context, 0.0, value) for name, value in outputs.items()}


class ScalarNetwork(_Trained):
    """A network with a scalar head: the critic's values, the reward model's scores."""

    def __init__(self, network: Any) -> None:
        """Wrap a Hugging Face sequence classifier of one label."""
        super().__init__()
        self.network = network
        self.pools = is_encoder(network.config)
        """An encoder scores a whole text, by its own pooling and head; a decoder has a scalar at each token."""
        self.takes_ragged_rows = prepare(network)
        self._last_layer = LastLayer(network)

    def forward(
        self,
        input_ids: Int[Tensor, "rows length"],
        position_ids: Int[Tensor, "rows length"] | None = None,
        positions: Int[Tensor, " scalars"] | None = None,
        ragged: RaggedRows | None = None,
    ) -> Float[Tensor, " scalars"]:
        """Return the head's output in float32 at the flattened `positions`; an encoder's at each row's last token.

        Without positions it answers as the network itself does, with the score of each row.
        """
        if positions is None:
            return self.network(input_ids=input_ids).logits.squeeze(-1).float()
        if self.pools:
            mask = attention_mask(input_ids, positions)
            return self.network(input_ids=input_ids, attention_mask=mask).logits.squeeze(-1).float()
        read = positions.unique()
        with self._last_layer.reading(read if len(read) <= READ_SHARE * input_ids.numel() else None):
            hidden = _hidden_states(self.network, input_ids, position_ids, positions, ragged)
        return self.network.score(hidden).squeeze(-1).float()


def _hidden_states(
    network: Any, input_ids: Tensor, position_ids: Tensor | None, positions: Tensor, ragged: RaggedRows | None
) -> Float[Tensor, "positions width"]:
    how = arguments(ragged, input_ids.device)
    output = network.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **how)
    hidden = output.last_hidden_state
    return hidden.flatten(0, 1).index_select(0, positions)
