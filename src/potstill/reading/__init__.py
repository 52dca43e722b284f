"""Everyone's files and rows as records: bytes, columns, shapes."""
