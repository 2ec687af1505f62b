"""Short tables of committed results, for the README and the first pages of the docs."""
