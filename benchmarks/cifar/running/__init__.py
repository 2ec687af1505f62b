"""One run, from its optimizer to the accounts of what it cost."""
