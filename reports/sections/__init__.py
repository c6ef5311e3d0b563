"""The sections of the page: a file for each, and one for the tables and figures of each special design."""
