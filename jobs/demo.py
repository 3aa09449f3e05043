"""`recap-ray demo`, for `ray job submit --working-dir . -- python jobs/demo.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("demo")
