"""What a run leaves behind: results, masks, and files beside them."""
