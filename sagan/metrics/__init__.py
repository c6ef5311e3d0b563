"""Metrics of generated images: one pass of an extractor, then every metric from its features."""
