"""`recap-ray train-decoder`, for `ray job submit --working-dir . -- python jobs/train_decoder.py ...`."""

from recap_ray.cli import main

if __name__ == "__main__":
    main("train-decoder")
