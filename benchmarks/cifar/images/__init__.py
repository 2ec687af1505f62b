"""Images: found, decoded, split, augmented and handed out in batches."""
