"""What is run: methods, one run and its name, a preset's choices, and protocols from TOML."""
