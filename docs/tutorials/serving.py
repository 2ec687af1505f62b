"""
From training to a served model
===============================

On this page a network is trained with a tenth of its weights and saved into a file of a seventh of
the size. A server loads the file and answers over HTTP.
"""

import json
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import SparseOptimizer, condense, load_sparse, save_sparse

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:-360], images[-360:]
train_labels, test_labels = labels[:-360], labels[-360:]


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


# %%
# Train
# -----
#
# With ``init="uniform"`` the first layer stays dense, and the others keep a tenth of their weights.

torch.manual_seed(0)
model = network()
EPOCHS, BATCH = 6, 48
steps = EPOCHS * -(-len(train_images) // BATCH)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer = SparseOptimizer(
    optimizer, model, method="rigl", density=0.1, init="uniform", total_steps=steps, delta_t=15
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(train_images)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()
        scheduler.step()
model.eval()


def accuracy(logits: torch.Tensor) -> str:
    return f"{100 * (logits.argmax(1) == test_labels).float().mean():.1f} %"


with torch.no_grad():
    expected = model(test_images)
print(f"accuracy: {accuracy(expected)}")

# %%
# Save
# ----
#
# The file has the live values, their positions, and the dense rest of the model. It is not a
# pickle.

folder = Path(tempfile.mkdtemp())
save_sparse(folder / "digits.safetensors", optimizer)
torch.save(model.state_dict(), folder / "digits.pt")
small, large = ((folder / name).stat().st_size for name in ("digits.safetensors", "digits.pt"))
print(f"the file has {small} bytes, a dense checkpoint has {large}")

# %%
# Load and condense
# -----------------
#
# A server needs the network's code and the file. It passes an example of its inputs, here one
# image at a time, and gets the implementation of the model that is fastest for such inputs on its
# machine. For a network as small as this one, a dense implementation may be fastest; the report has
# the time of each.

loaded = network()
load_sparse(folder / "digits.safetensors", loaded)
condensed = condense(loaded, "nonzero", example_inputs=test_images[:1], compiled=False)
print(condensed.report)

with torch.no_grad():
    found = condensed.model(test_images)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

# %%
# Serve
# -----
#
# Several threads may call one model at the same time.


class Digits(BaseHTTPRequestHandler):
    """Answers a list of 64 numbers, the pixels of an image, with a digit."""

    def do_POST(self) -> None:
        pixels = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with torch.no_grad():
            digit = condensed.model(torch.tensor(pixels).view(1, 1, 8, 8)).argmax().item()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(digit).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Digits)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_address[1]}"


def ask(image: torch.Tensor) -> int:
    body = json.dumps(image.flatten().tolist()).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body)) as answer:
        return json.load(answer)


answers = [ask(image) for image in test_images[:20]]
server.shutdown()
print(answers)
assert answers == expected[:20].argmax(1).tolist()

# %%
# :doc:`/how-to/smaller-models` says what else becomes smaller or faster, and how.
