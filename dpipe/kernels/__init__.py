"""Arrays in, arrays out: the statistics themselves, without Dask, files or options."""
