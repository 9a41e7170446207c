"""The names of the loss terms."""

# Every term of the total loss, in reporting order.
TERMS = ("task", "mimic", "generation", "nkd", "kl", "hard")
# Terms that compare logits and so need a teacher of the dataset's classes.
LOGIT_TERMS = ("nkd", "kl", "hard")
