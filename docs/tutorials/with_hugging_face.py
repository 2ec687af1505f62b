"""
The Hugging Face Trainer
========================

On this page the ``Trainer`` of ``transformers`` trains a sparse vision transformer twice: with an
optimizer that is passed to it, and with the optimizer that it makes itself.
"""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils.logging import disable_progress_bar

from sparseopt import SparseOptimizer

disable_progress_bar()

# %%
# Model and data
# --------------
#
# The model is made from its configuration, so nothing is downloaded. Images have 8x8 pixels, and
# patches 2x2.


class Digits(Dataset):
    """The digits of scikit-learn, in the form that the Trainer expects."""

    def __init__(self, part: slice):
        digits = load_digits()
        self.images = torch.tensor(digits.images[part], dtype=torch.float32).unsqueeze(1) / 8 - 1
        self.labels = torch.tensor(digits.target[part])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


def network() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            num_labels=10,
        )
    )


train_set, test_set = Digits(slice(None, -360)), Digits(slice(-360, None))
EPOCHS, BATCH = 8, 48
steps = EPOCHS * -(-len(train_set) // BATCH)


def arguments(epochs: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=len(test_set),
        learning_rate=4e-3,
        weight_decay=0.01,
        warmup_steps=20,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float(np.mean(prediction.predictions.argmax(1) == prediction.label_ids))}


# %%
# Pass the wrapper
# ----------------
#
# The ``Trainer`` takes an optimizer and a scheduler; pass both.

model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
optimizer = SparseOptimizer(
    optimizer, model, method="rigl", density=0.2, total_steps=steps, delta_t=20
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
trainer = Trainer(
    model=model,
    args=arguments(EPOCHS),
    train_dataset=train_set,
    eval_dataset=test_set,
    compute_metrics=accuracy,
    optimizers=(optimizer, scheduler),
)
trainer.remove_callback(PrinterCallback)  # it prints how fast this machine was
trainer.train()
print(f"accuracy {100 * trainer.evaluate()['eval_accuracy']:.1f} %")

# %%
# The linear layers and the convolution that reads the patches are sparse:

print(optimizer.summary())

# %%
# Or wrap what the Trainer makes
# ------------------------------
#
# The ``Trainer`` makes the optimizer from its arguments, with its param groups: no weight decay for
# biases and LayerNorm. Override one method to wrap it. The scheduler is the ``Trainer``'s.


class SparseTrainer(Trainer):
    """Trains a fifth of the weights."""

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            inner = super().create_optimizer(model)
            self.optimizer = SparseOptimizer(
                inner, self.model, density=0.2, total_steps=self.state.max_steps, delta_t=20
            )
        return self.optimizer


trainer = SparseTrainer(
    model=network(),
    args=arguments(epochs=3),
    train_dataset=train_set,
)
trainer.remove_callback(PrinterCallback)
trainer.train()

# %%
# During training the ``Trainer`` wraps the optimizer in Accelerate's. Its ``.optimizer`` is ours.

sparse = trainer.optimizer.optimizer
print([f"weight decay {group['weight_decay']}" for group in sparse.param_groups])
print(f"density {sparse.density:.3f}, masks moved at {[record.step for record in sparse.history]}")

# %%
# The Trainer saves the model like any other, and loads it without this library:

folder = tempfile.mkdtemp()
trainer.save_model(folder)
loaded = ViTForImageClassification.from_pretrained(folder)
layer = "vit.layers.0.mlp.fc1.weight"
print(f"{layer}: {(loaded.get_parameter(layer) != 0).float().mean():.3f} of the weights not zero")

# %%
# For resuming, mixed precision and language models see :doc:`/how-to/frameworks`.
