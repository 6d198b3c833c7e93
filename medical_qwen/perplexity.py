"""How likely does a model find the reference answers?

Perplexity over the answer tokens alone (end token included), every token weighing the same: comparable between the
stages of one model, not between models with different tokenizers.
"""

import logging
import math
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from medical_qwen.rendering import Renderer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of the learned tokens. `nats` and `tokens` are sums over `rows` conversations."""

    nats: float
    tokens: int
    rows: int
    dropped: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


@torch.inference_mode()
def answer_likelihood(
    model: PreTrainedModel,
    renderer: Renderer,
    conversations: list[list[dict]],
    max_length: int = 2048,
    batch_tokens: int = 2048,
) -> Likelihood:
    """The likelihood of what the assistant says in `conversations` (message lists), in batches of like lengths.

    Args:
        max_length: tokens; longer conversations lose their oldest turns as in training; dropped if nothing fits.
        batch_tokens: padded tokens of a batch; bounds the memory for the logits.

    Raises:
        ValueError: no conversation has a token that is predicted.
    """
    fitted = [renderer.fit(messages, max_length)[0] for messages in conversations]
    rows = sorted((row for row in fitted if row is not None), key=lambda row: len(row.input_ids))
    nats, tokens = 0.0, 0
    progress = tqdm(total=len(rows), desc="perplexity", unit="row", disable=None)
    while rows:
        count = max(1, batch_tokens // len(rows[-1].input_ids))
        batch, rows = rows[-count:], rows[:-count]
        loss, predicted = _batch_loss(model.eval(), batch)
        nats, tokens = nats + loss, tokens + predicted
        progress.update(len(batch))
    progress.close()
    if not tokens:
        raise ValueError(
            f"none of the {len(conversations)} conversations has an answer that fits in {max_length} tokens"
        )
    dropped = sum(row is None for row in fitted)
    return Likelihood(nats, tokens, len(fitted) - dropped, dropped)


def _batch_loss(model: PreTrainedModel, batch: list) -> tuple[float, int]:
    width = max(len(row.input_ids) for row in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for number, row in enumerate(batch):
        length = len(row.input_ids)
        ids[number, :length] = torch.tensor(row.input_ids)
        attention[number, :length] = 1
        learned = torch.tensor(row.mask, dtype=torch.bool)
        labels[number, :length][learned] = ids[number, :length][learned]
    logits = model(ids.to(model.device), attention_mask=attention.to(model.device)).logits[:, :-1]
    targets = labels[:, 1:].to(logits.device)
    at = targets != -100
    loss = torch.nn.functional.cross_entropy(logits[at].float(), targets[at], reduction="sum")
    return loss.item(), int(at.sum())
