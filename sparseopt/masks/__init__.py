"""One weight and which of its entries are live: layers, top-k, mask changes, initial masks."""
