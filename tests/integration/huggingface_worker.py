"""Trains with Hugging Face's Trainer in a process of its own.

`python -m tests.integration.huggingface_worker COMMAND FOLDER`, where the command is "start" (with
a checkpoint on the way, and then a plain loop for comparison) or "resume" (what another process
saved).
"""

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    get_linear_schedule_with_warmup,
    set_seed,
)

from sparseopt import SparseOptimizer
from tests.integration.frameworks import (
    EPOCHS,
    LR,
    MAX_NORM,
    SETTINGS,
    STEPS,
    STEPS_PER_EPOCH,
    Recorder,
    by_hand,
    plan,
)
from tests.integration.huggingface_runs import HIDDEN, LENGTH, RUNS, SAVED_AT, VOCABULARY, Run
from tests.integration.resume_worker import outcome
from tests.support.oracles import oracle_for

SIZE = 4
WARMUP = 3
SPARSE = {key: SETTINGS[key] for key in ("density", "delta_t", "seed")}


def trainer_with(model, steps, **others):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    optimizer = SparseOptimizer(optimizer, model, total_steps=steps, **SPARSE)
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=steps)
    return Trainer(model, optimizers=(optimizer, scheduler), **others)


class SparseTrainer(Trainer):
    def __init__(self, *args, sparse, **others):
        super().__init__(*args, **others)
        self.sparse = sparse

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            optimizer = super().create_optimizer(model)
            steps = self.state.max_steps
            self.optimizer = SparseOptimizer(
                optimizer, self.model, total_steps=steps, **self.sparse
            )
        return self.optimizer


def make_model(kind: str) -> PreTrainedModel:
    set_seed(0)
    if kind == "BERT":
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * HIDDEN,
                max_position_embeddings=LENGTH,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    if kind == "Llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * HIDDEN,
                max_position_embeddings=LENGTH,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=HIDDEN,
            n_layer=2,
            n_head=2,
            n_positions=LENGTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def examples(run: Run) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(
        3, VOCABULARY, (STEPS_PER_EPOCH * run.accumulate * SIZE, LENGTH), generator=generator
    )
    if run.model == "BERT":
        return [{"input_ids": text, "label": int(text[0]) % 2} for text in texts]
    # Nothing predicts the first token; with some models the Trainer counts it if it is there.
    labels = texts.clone()
    labels[:, 0] = -100
    return [{"input_ids": text, "labels": label} for text, label in zip(texts, labels, strict=True)]


class Collator:
    """Keeps the batches that it makes, in their order."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.batches.append(default_data_collator(features))
        return self.batches[-1]


def trainer_for(run: Run, model: PreTrainedModel, collator: Collator, folder: Path) -> Trainer:
    others = {
        "args": TrainingArguments(
            folder,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=SIZE,
            gradient_accumulation_steps=run.accumulate,
            optim=run.optim,
            learning_rate=LR,
            weight_decay=0.01,
            max_grad_norm=MAX_NORM,
            warmup_steps=WARMUP,
            bf16=run.bf16,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_steps=SAVED_AT,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        "data_collator": collator,
        "train_dataset": examples(run),
    }
    if run.passed:
        return trainer_with(model, STEPS, **others)
    sparse = {**SPARSE, "method": run.method, "state": run.state}
    return SparseTrainer(model, sparse=sparse, **others)


class Observer(TrainerCallback):
    """Records every step from the moment when training, or what is left of it, begins."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **about: Any) -> None:
        self.recorder = Recorder(about["model"], about["optimizer"].optimizer)


def go(run: Run, folder: Path, checkpoint: Path | None) -> dict[str, Any]:
    """Train, from a checkpoint if there is one; return the records of it and of the plain loop."""
    model, collator, observer = make_model(run.model), Collator(), Observer()
    trainer = trainer_for(run, model, collator, folder)
    trainer.add_callback(observer)
    trainer.train(resume_from_checkpoint=checkpoint)
    optimizer = observer.recorder.optimizer
    return {
        **observer.recorder.seen,
        "log": [entry for entry in trainer.state.log_history if "grad_norm" in entry],
        "outcome": outcome(model, optimizer),
        "inference_sparse": optimizer.flops().inference_sparse,
        "reference": None if checkpoint else plain_loop(run, trainer, collator.batches),
    }


def plain_loop(run: Run, trainer: Trainer, batches: list[dict[str, Tensor]]) -> dict[str, list]:
    """The same training on the same batches without Trainer and wrapper."""
    model = make_model(run.model)
    decays = set(trainer.get_decay_parameter_names(model))
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decays]},
        {
            "params": [p for n, p in model.named_parameters() if n not in decays],
            "weight_decay": 0.0,
        },
    ]
    parameters = model.parameters() if run.passed else groups
    optimizer = torch.optim.AdamW(parameters, lr=LR, fused=run.optim == "adamw_torch_fused")
    if run.passed:
        scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    else:
        scheduler = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)

    def loss(model: nn.Module, index: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run.bf16):
            if run.model == "BERT":
                return model(**batches[index]).loss
            # The mean over all micro-batches of a step; `by_hand` divides by their number.
            tokens = run.accumulate * SIZE * (LENGTH - 1)
            return run.accumulate * model(**batches[index], num_items_in_batch=tokens).loss

    return by_hand(
        model,
        optimizer,
        oracle_for(run.method, model, names=run.names, **SETTINGS),
        plan(STEPS, accumulate=run.accumulate, per_epoch=len(batches)),
        max_norm=MAX_NORM,
        scheduler=scheduler,
        loss=loss,
    )


def main(command: str, folder: Path) -> None:
    for name, run in RUNS.items():
        # Its precision can't be changed otherwise.
        AcceleratorState._reset_state(reset_partial_state=True)
        checkpoint = folder / name / f"checkpoint-{SAVED_AT}" if command == "resume" else None
        torch.save(go(run, folder / name, checkpoint), folder / f"{name}-{command}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
