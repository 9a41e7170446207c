"""How good a model is: evaluators of one contract, and the pass that runs them.

An evaluator has `init() -> sums`, `update(sums, logits, batch) -> sums`, which
is traced, and `compute(sums) -> results`. Sums add up over batches, so that a
result is exact for any batch size and any number of devices.
"""
