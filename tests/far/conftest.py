"""These files run in processes of their own: imported for their doctests, they would change torch for all tests."""

collect_ignore = ["counted.py", "decoded.py", "device.py", "shared.py"]
