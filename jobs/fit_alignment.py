"""`recap-ray fit-alignment`, for `ray job submit --working-dir . -- python jobs/fit_alignment.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("fit-alignment")
