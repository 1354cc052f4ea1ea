"""Benchmarks: each module is a script; ``python -m benchmarks`` runs them all."""
