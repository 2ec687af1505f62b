"""The tests of sparseopt; `oracle` and `support` are what they share."""
