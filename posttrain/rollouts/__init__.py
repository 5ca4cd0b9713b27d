"""What a model says and what it is worth: sampling, asking, rewards, scoring, best of k."""
