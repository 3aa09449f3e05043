"""`recap-ray caption`, for `ray job submit --working-dir . -- python jobs/caption.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("caption")
