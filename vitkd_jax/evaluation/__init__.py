"""Evaluators with one contract, and the pass over a split that runs them.

An evaluator has `init() -> sums`, `update(sums, logits, batch) -> sums`, which
is traced, and `compute(sums) -> results`. As sums add up over batches, results
are exact for any batch size and any number of devices.
"""
