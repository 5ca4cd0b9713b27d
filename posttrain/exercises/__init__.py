"""Exercises that test themselves: write a loss, find the mistake in a loop. Read from losses/, minimal/ and tests/."""
