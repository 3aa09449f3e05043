"""`python -m recap_ray` is `recap-ray`."""

from recap_ray.cli import main

main()
