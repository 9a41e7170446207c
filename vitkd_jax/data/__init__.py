"""Images and labels: TFDS sources, Grain batches, augmentation on the device.

Nothing here imports TensorFlow, but for `fashion_builder`, which only
`python -m vitkd_jax.prepare` imports.
"""
