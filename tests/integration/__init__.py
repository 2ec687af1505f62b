"""Tests that need real processes or real frameworks."""
