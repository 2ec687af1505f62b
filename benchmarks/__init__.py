"""Programs that measure what the library gives and costs."""
