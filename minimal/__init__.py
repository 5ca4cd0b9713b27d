"""The four loops on one page each: no Accelerate, no config. tests/test_minimal.py holds them to loops/."""
