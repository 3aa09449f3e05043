"""`recap-ray compact`, for `ray job submit --working-dir . -- python jobs/compact.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("compact")
