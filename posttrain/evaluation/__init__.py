"""What a model can do and how surely: suites, intervals, comparisons, the ladder's rungs and reports."""
