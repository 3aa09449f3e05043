"""`recap-ray report`, for `ray job submit --working-dir . -- python jobs/report.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("report")
