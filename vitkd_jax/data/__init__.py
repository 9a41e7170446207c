"""Images and labels: TFDS sources, Grain batches, augmentation on the device.

Nothing here imports TensorFlow. `builders` is what `python -m
vitkd_jax.prepare` writes datasets with.
"""
