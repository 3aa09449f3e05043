"""`recap-ray augment-index`, for `ray job submit --working-dir . -- python jobs/augment_index.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("augment-index")
