"""A stage of fit-alignment that ends its parts in another order; apart from the tests, so that workers start fast."""

import time

from recap_ray.pipelines.fit.fold_moments import SumUp


class FirstFoldLate(SumUp):
    """Sums the parts of the first fold so slowly that others end before them."""

    def __call__(self, batch):
        row = super().__call__(batch)
        time.sleep(2 if row["fold"][0] == 0 else 0)
        return row
