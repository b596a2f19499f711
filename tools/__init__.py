"""Programs for developers: benchmarks. Nothing imports them."""
