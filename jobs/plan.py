"""`recap-ray plan`, for `ray job submit --working-dir . -- python jobs/plan.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("plan")
