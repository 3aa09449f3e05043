"""`recap-ray import-decoder`, for `ray job submit --working-dir . -- python jobs/import_decoder.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("import-decoder")
