"""Read what a source holds: files, archives, tables and folders, a record at a time."""
