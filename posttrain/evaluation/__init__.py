"""What changed and how surely: intervals, the ladder's rungs and its report."""
