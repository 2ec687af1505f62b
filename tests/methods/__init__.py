"""Tests of `sparseopt.methods`, a file per method."""
