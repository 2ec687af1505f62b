"""Other libraries that train sparse, each driven as its own documentation says."""
