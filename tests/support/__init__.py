"""What the tests share: small models, torch's list of optimizers, training, a hand-masked run."""
