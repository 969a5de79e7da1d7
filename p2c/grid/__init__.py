"""The runs that the benchmarks' tables need: so far, the datasets of each benchmark."""
