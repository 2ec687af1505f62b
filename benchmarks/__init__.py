"""Programs that measure the library's gains and costs."""
