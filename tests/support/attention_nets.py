"""Small transformers of every kind in which heads and hidden neurons have to be found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from tests.oracle import Owned
from tests.support.nets import CLASSES

TOKENS = torch.zeros(2, 3, 6, 6)


class GatedNet(nn.Module):
    """A block of four heads of two, and a gated feed-forward layer, on what `batch` returns."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)
        self.gate, self.up = (nn.Linear(8, 12, bias=False) for _ in range(2))
        self.down = nn.Linear(12, 8)
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (-1, 2)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = self.norm(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.last(x.mean(1))


GATED_OWNED = {
    "q.weight": Owned(
        4,
        makers=("q.weight", "k.weight", "v.weight"),
        vectors=("q.bias", "k.bias", "v.bias"),
        readers={"out.weight": 2},
        width=2,
    ),
    "gate.weight": Owned(12, makers=("gate.weight", "up.weight"), readers={"down.weight": 1}),
}


class OwnViT(nn.Module):
    """Attention as many write it: one projection, and numbers of heads in attributes.

    Args:
        fused: how queries, keys and values come out of it: by a view, in chunks, or split.
    """

    def __init__(self, fused: str):
        super().__init__()
        self.fused, self.heads, self.inner = fused, 4, 16
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48, bias=fused != "split")
        self.proj = nn.Linear(16, 16)
        self.wide, self.narrow = nn.Linear(16, 40), nn.Linear(20, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.proj(self._attend(self.qkv(self.norm1(x))))
        gate, up = self.wide(self.norm2(x)).chunk(2, dim=-1)
        return self.head((x + self.narrow(F.gelu(gate) * up)).mean(1))

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        samples, tokens, _ = qkv.shape
        if self.fused == "view":
            q, k, v = qkv.view(samples, tokens, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        else:
            parts = qkv.chunk(3, -1) if self.fused == "chunk" else qkv.split(self.inner, -1)
            q, k, v = (p.view(samples, tokens, self.heads, -1).transpose(1, 2) for p in parts)
        if self.fused == "split":
            attended = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(1, 2).reshape(samples, tokens, -1)


@dataclass(frozen=True)
class Transformer:
    """A model with inputs, and what is to be found in each of its blocks.

    Attributes:
        make: makes it.
        args: positional inputs.
        kwargs: keyword inputs.
        output: where the tensor is in what it returns, if that is none.
        blocks: how many there are.
        heads: of each block; with grouped queries, heads of keys.
        neurons: hidden neurons of each block.
    """

    make: Callable[[], nn.Module]
    blocks: int
    heads: int
    neurons: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: str | None = None

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The same model every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make().to(dtype)

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its inputs, numbers in a precision."""
        return tuple(one.to(dtype) for one in self.args), self.kwargs

    def run(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Its output."""
        args, kwargs = self.inputs(dtype)
        result = model(*args, **kwargs)
        return result if self.output is None else result[self.output]


IMAGES = (torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
SEQUENCES = (torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)),)
WORDS = {"input_ids": torch.arange(24).view(2, 12) % 19}


def _vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24
    )


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(16, 3))


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 19, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none, **ends))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=19,
        intermediate_size=24,
    )
    return LlamaForCausalLM(config)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=19,
        intermediate_size=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


class CausalEncoder(nn.Module):
    """Torch's encoder with a causal mask that is not named as such."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = _encoder()

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.encoder(x, mask))


class CausalTransformer(nn.Module):
    """Torch's encoder and decoder, with a causal mask in the decoder."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, source, target):
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(source, target, tgt_mask=mask))


GENERATION = {**WORDS, "use_cache": False}
TRANSFORMERS = {
    "own, view": Transformer(lambda: OwnViT("view"), 1, 4, 20, IMAGES),
    "own, chunk": Transformer(lambda: OwnViT("chunk"), 1, 4, 20, IMAGES),
    "own, split": Transformer(lambda: OwnViT("split"), 1, 4, 20, IMAGES),
    "vit": Transformer(_vit, 2, 4, 24, IMAGES),
    "encoder": Transformer(_encoder, 2, 4, 24, SEQUENCES),
    "causal encoder": Transformer(CausalEncoder, 2, 4, 24, SEQUENCES),
    "gpt2": Transformer(_gpt2, 2, 4, 64, kwargs=GENERATION, output="logits"),
    "llama": Transformer(_llama, 2, 4, 24, kwargs=GENERATION, output="logits"),
    "bert": Transformer(_bert, 2, 4, 24, kwargs=WORDS, output="logits"),
}
