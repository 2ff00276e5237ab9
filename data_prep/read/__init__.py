"""Sources to records: files of every format, each record with its place of origin, and what is remembered of them."""
