"""What is done with a finished run: verify, check, compact, report."""
