"""The names of the loss terms."""

# Every term of the total loss, in the order in which they are reported.
TERMS = ("task", "mimic", "generation", "nkd", "kl", "hard")
# Those that compare logits, and so need a teacher of the dataset's classes.
LOGIT_TERMS = ("nkd", "kl", "hard")
