"""`recap-ray check`, for `ray job submit --working-dir . -- python jobs/check.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("check")
