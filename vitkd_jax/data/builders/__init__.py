"""Builders of the datasets that `python -m vitkd_jax.prepare` writes.

None needs TensorFlow. A source (`tree`, `imagenet`, `cifar`, `fashion`) lists
its examples as a `records.Dataset`, which `records` divides into shards;
`tfrecord` keeps those of its source. `shards.write` writes the files.
"""
