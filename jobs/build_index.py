"""`recap-ray build-index`, for `ray job submit --working-dir . -- python jobs/build_index.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("build-index")
