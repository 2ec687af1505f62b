"""Frameworks train a model that is sped up as they train it without."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import speed_up
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import full_plan, images, labels, make, wrap

pytestmark = [needs_kernels, pytest.mark.slow]

BATCHES, SIZE, EPOCHS = 4, 6, 2


def loader():
    x = torch.cat([images(index) for index in range(BATCHES)])
    y = torch.cat([labels(index) for index in range(BATCHES)])
    return DataLoader(TensorDataset(x, y), batch_size=SIZE)


def prepared(*, fast):
    model = make()
    optimizer = wrap(model, method="rigl")
    if fast:
        speed_up(model, optimizer, plan=full_plan(model, optimizer))
    return model, optimizer


def assert_same_outcome(outcomes):
    (losses, model, optimizer), (fast_losses, fast_model, fast_optimizer) = outcomes
    assert len(losses) == BATCHES * EPOCHS
    assert fast_losses == pytest.approx(losses, rel=5e-3)
    assert len(optimizer.history) == len(fast_optimizer.history) == 1
    assert type(fast_model.block.conv1) is not torch.nn.Conv2d
    for name, mask in optimizer.masks.items():
        assert torch.equal(fast_optimizer.masks[name], mask)
    for mine, theirs in zip(fast_model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=5e-2, atol=5e-4)


@pytest.mark.filterwarnings(
    # Lightning's own warnings: about its calls of torch, and advice for larger runs.
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
)
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, fast):
            super().__init__()
            self.net, self.optimizer = prepared(fast=fast)
            self.losses = []

        def training_step(self, batch):
            loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self):
            return self.optimizer

    outcomes = []
    for fast in (False, True):
        module = Module(fast)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader())
        outcomes.append((module.losses, module.net, module.optimizer))
    assert_same_outcome(outcomes)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    outcomes = []
    for fast in (False, True):
        accelerator = accelerate.Accelerator(cpu=True)
        net, optimizer = prepared(fast=fast)
        model, wrapped, data = accelerator.prepare(net, optimizer, loader())
        losses = []
        for _ in range(EPOCHS):
            for x, y in data:
                loss = torch.nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                wrapped.step()
                wrapped.zero_grad()
                losses.append(float(loss.detach()))
        outcomes.append((losses, net, optimizer))
    assert_same_outcome(outcomes)


def test_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")

    class ForTrainer(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.losses = []

        def forward(self, pixel_values, labels):
            logits = self.net(pixel_values)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            self.losses.append(float(loss.detach()))
            return {"loss": loss, "logits": logits}

    data = [
        {"pixel_values": x, "labels": y}
        for index in range(BATCHES)
        for x, y in zip(images(index), labels(index), strict=True)
    ]
    outcomes = []
    for fast in (False, True):
        net, optimizer = prepared(fast=fast)
        model = ForTrainer(net)
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=SIZE,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            max_grad_norm=1.0,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=data, optimizers=(optimizer, constant)
        )
        trainer.train()
        outcomes.append((model.losses, net, optimizer))
    assert_same_outcome(outcomes)
