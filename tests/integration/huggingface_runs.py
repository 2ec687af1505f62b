"""The runs of the tests of Hugging Face's Trainer, without it: it takes seconds to import."""

from dataclasses import dataclass

SAVED_AT = 13
VOCABULARY, HIDDEN, LENGTH = 50, 32, 8


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
        model: The kind of model.
        names: What of it is made sparse: everything linear but what is tied to an embedding.
        method: The method.
        state: How the optimizer's state is kept.
        accumulate: The Trainer's `gradient_accumulation_steps`.
        bf16: The Trainer's `bf16`.
        optim: The Trainer's `optim`.
        passed: Whether the optimizer is passed to the Trainer, not made by a subclass of it.
    """

    model: str
    names: tuple[str, ...]
    method: str = "rigl"
    state: str = "auto"
    accumulate: int = 1
    bf16: bool = False
    optim: str = "adamw_torch"
    passed: bool = True


def _in_layers(path: str, *modules: str) -> tuple[str, ...]:
    return tuple(f"{path}.{layer}.{module}.weight" for layer in range(2) for module in modules)


RUNS = {
    "passed to the Trainer": Run(
        "BERT",
        (
            *_in_layers(
                "bert.encoder.layer",
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "intermediate.dense",
                "output.dense",
            ),
            "bert.pooler.dense.weight",
            "classifier.weight",
        ),
    ),
    "made by a subclass, accumulated": Run(
        "Llama",
        _in_layers(
            "model.layers",
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
        "set",
        accumulate=2,
        passed=False,
    ),
    # In live state a fused optimizer may round differently from a dense one.
    "made by a subclass, bf16": Run(
        "GPT-2",
        _in_layers("transformer.h", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        state="masked",
        bf16=True,
        optim="adamw_torch_fused",
        passed=False,
    ),
}
