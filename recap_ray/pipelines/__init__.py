"""Jobs as Ray Data pipelines; the only part of the project that imports ray."""
