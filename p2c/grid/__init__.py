"""What the tables need: datasets of the benchmarks."""
