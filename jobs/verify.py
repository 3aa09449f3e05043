"""`recap-ray verify`, for `ray job submit --working-dir . -- python jobs/verify.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("verify")
