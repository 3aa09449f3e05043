"""`recap-ray evaluate`, for `ray job submit --working-dir . -- python jobs/evaluate.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("evaluate")
