"""Jobs on the output of a run: verify, check, compact, report."""
